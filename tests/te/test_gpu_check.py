"""`make gpu-check` at a size that says nothing, with Transformer Engine on a CPU: every part runs, and judges."""

import os
import re
import subprocess

import pytest
import torch

from benchmarks import gpu_check
from benchmarks.gpu_lab import CheckFailed, count_not_the_optimizers
from megatron_ext.model.checkpoint_reader import CheckpointReader
from tests.cpu.launch import ROOT
from tests.te.environment import PYTHON, READY
from tests.tiny_model import write_tiny_model

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not READY.exists(), reason="`make te` makes .venv-te")]


@pytest.fixture(scope="module")
def checked(tmp_path_factory):
    folder = tmp_path_factory.mktemp("check")
    model = write_tiny_model(folder / "model", initializer_range=0.1)
    (model / "chat_template.jinja").write_text("{{ messages[0].content }}\n")  # rewriting wants an instruct model
    done = subprocess.run([PYTHON, "-m", "benchmarks.gpu_check", "--size", "tiny", "--model", str(model), "--work",
                           str(folder / "work")], cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"},
                          capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "work"


def test_the_page_tells_every_part(checked):
    page = (checked / "page.md").read_text(encoding="utf-8")
    assert re.findall(r"^## (.*) \(\d+ s\)$", page, re.MULTILINE) == list(gpu_check.PARTS)
    assert re.findall(r"parity after import \(tp=1 pp=2 transformer_engine, (\w+), 64 positions .*: pass", page) == [
        "TF32", "bfloat16"]
    assert "| iteration | transformer_engine | local | transformer_engine, documents apart |" in page
    assert len(re.findall(r"^\| [1-4] \| ", page, re.MULTILINE)) == 4
    assert "equal to the bit" in page
    assert re.search(r"Of [\d,]+ saved weights 0 are not the optimizer's", page)
    assert re.search(r"2 processes and one end \d+\.\d % of the way apart", page)
    assert "| megatron_ext |" in page
    assert "| transformers + AdamW |" in page
    assert re.search(r"Memory: estimated \d+\.\d GiB", page)
    if gpu_check._VLLM.exists():
        assert re.search(r"1: bare .* stage .* stage / bare \d", page)
    assert page.rstrip().endswith("All parts passed.")


def test_a_stale_weight_is_found(checked):
    """One byte of one weight changed, as if a rank's update had not been gathered."""
    checkpoint = max((checked / "local" / "checkpoints").glob("iter_*"))
    assert count_not_the_optimizers(checkpoint)[0] == 0
    row = CheckpointReader(checkpoint).read("embedding.word_embeddings.weight", None)[0]
    raw = row.contiguous().view(torch.uint8).numpy().tobytes()
    [file] = [path for path in checkpoint.glob("*.distcp") if raw in path.read_bytes()]
    data = bytearray(file.read_bytes())
    data[data.index(raw) + 1] ^= 0x01
    file.write_bytes(data)
    assert count_not_the_optimizers(checkpoint)[0] == 1


class BrokenLab:
    """Runs whose losses are far from each other."""

    layers = "transformer_engine"

    def train(self, name, **sections):
        return [{"iteration": 1, "loss": 2.0 if name == "run" else 2.1}]


@pytest.mark.parametrize("part", [gpu_check.losses, gpu_check.resume], ids=lambda part: part.__name__)
def test_what_is_not_so_fails_the_part(part):
    lab = BrokenLab()
    if part is gpu_check.resume:
        losses = iter([1.0, 1.0, 1.5])
        lab.train = lambda name, **sections: [{"iteration": 1, "loss": next(losses)}]
    with pytest.raises(CheckFailed, match=r"nats apart"):
        part(lab)
    lines, passed = gpu_check._run_part("title", lambda lab: (_ for _ in ()).throw(CheckFailed("the reason")), lab)
    assert not passed
    assert {"**FAILED**", "the reason"} <= set(lines)
