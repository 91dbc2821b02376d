"""Hugging Face -> Megatron under several layouts -> Hugging Face, bit for bit, with parity in between."""

import json
import shutil
import signal
import subprocess
import sys
from unittest.mock import patch

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from megatron_ext.artifacts import MANIFEST, Artifact, partial_folder, produce
from megatron_ext.model import merge
from megatron_ext.model.hf_export import write_hf_folder
from megatron_ext.model.hf_import import write_megatron_checkpoint
from megatron_ext.model.merge import write_merged
from tests.cpu.cases_weights import LAYOUTS
from tests.cpu.launch import ROOT, run_distributed
from tests.hf_models import MODELS, make_hf_model

pytestmark = pytest.mark.slow
FEW_GROUPS = "few_groups"
"""A Qwen2 with 2 key/value heads, for 4 tensor-parallel ranks."""


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """The folder of all models, each saved as a checkpoint by every layout; and what that printed."""
    folder = tmp_path_factory.mktemp("weights")
    for name in [*MODELS, FEW_GROUPS]:
        changes = {"num_attention_heads": 4} if name == FEW_GROUPS else {}
        make_hf_model(folder / name, "qwen2" if name == FEW_GROUPS else name,
                      dtype="bfloat16" if name == "mistral" else "float32", **changes)
        streamed = folder / f"{name}-streamed"
        streamed.mkdir()
        write_megatron_checkpoint(folder / name, streamed)
    make_hf_model(folder / "deep", "qwen3", num_hidden_layers=4, tie_word_embeddings=True)
    output = run_distributed("tests.cpu.cases_weights:import_and_check", nproc=4, folder=str(folder),
                             models=list(MODELS), deep_model=str(folder / "deep"), few_groups=FEW_GROUPS)
    (folder / "output.txt").write_text(output)
    return folder


def tensors(folder):
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


@pytest.mark.parametrize("name", [*MODELS, FEW_GROUPS])
def test_round_trips_are_bit_exact(lab, name, tmp_path):
    original = tensors(lab / name)
    layouts = [(4, 1)] if name == FEW_GROUPS else LAYOUTS
    for written_by in [*(f"{tp}-{pp}" for tp, pp in layouts), "streamed"]:
        target = tmp_path / written_by
        target.mkdir()
        write_hf_folder(lab / f"{name}-{written_by}", target)
        exported = tensors(target)
        assert exported.keys() == original.keys()
        for tensor, value in original.items():
            assert exported[tensor].dtype == value.dtype
            assert exported[tensor].equal(value), (tensor, written_by)
        assert (target / "config.json").read_bytes() == (lab / name / "config.json").read_bytes()


def test_vocabulary_is_padded_for_tensor_parallelism(lab):
    """131 tokens fill two ranks' 128 rows each, and the padding is not exported (the round trip says so)."""
    from megatron_ext.model.checkpoint_reader import CheckpointReader

    embedding = CheckpointReader(lab / "llama-2-1").read("embedding.word_embeddings.weight", None)
    assert embedding.shape == (256, 48)
    assert embedding[131:].abs().max() == 0
    assert embedding[130].abs().max() > 0


def test_parity_under_sequence_context_and_virtual_pipeline_parallelism(lab):
    lines = [line for line in (lab / "output.txt").read_text().splitlines() if line.startswith("parity (")]
    assert [line.split(", ")[0] for line in lines] == [
        "parity (tp=2 pp=1 cp=2", "parity (tp=1 pp=2 cp=2", "parity (tp=2 pp=2", "parity (tp=2 pp=2 vpp=2"]
    assert all(", float32, 64 positions" in line and line.endswith(": pass") for line in lines)


def test_programs_prove_parity_and_agree(lab, tmp_path, capsys):
    from tools.export_hf import main as export_main
    from tools.import_hf import main as import_main

    assert main_with(import_main, "--output", tmp_path / "imported", f"model={lab / 'qwen2'}", "dtype=bfloat16",
                     "parity_positions=64") == 0
    assert "parity after import (tp=1 pp=1, float32, 64 positions" in capsys.readouterr().out
    assert main_with(export_main, "--output", tmp_path / "exported", f"checkpoint={tmp_path / 'imported'}",
                     "parity_positions=64") == 0
    assert "parity after export (tp=1 pp=1, float32, 64 positions" in capsys.readouterr().out
    for artifact in (Artifact.open(tmp_path / "imported", kind="checkpoint"),
                     Artifact.open(tmp_path / "exported", kind="hf_model")):
        assert artifact.counts["parity"]["passed"]
        assert artifact.verify() == []
    for tensor, value in tensors(lab / "qwen2").items():
        assert tensors(tmp_path / "exported")[tensor].equal(value.bfloat16())


def main_with(main, *arguments):
    with patch.object(sys, "argv", ["program", *map(str, arguments)]):
        return main()


def test_export_casts_when_asked(lab, tmp_path):
    checkpoint = lab / "llama-1-2"
    write_hf_folder(checkpoint, tmp_path, dtype="bfloat16")
    for tensor, value in tensors(lab / "llama").items():
        assert tensors(tmp_path)[tensor].equal(value.bfloat16())
    config = json.loads((tmp_path / "config.json").read_text())
    original = json.loads((lab / "llama" / "config.json").read_text())
    assert config == original | {"dtype": "bfloat16"}


KILLED_WHILE_WRITING = """
import os, signal, sys
from megatron_ext import hashing
write, left = hashing.HashedFile.write, [int(sys.argv.pop(1))]

def write_and_die(file, data):
    written = write(file, data)
    left[0] -= written
    if left[0] < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return written

hashing.HashedFile.write = write_and_die
from tools.{program} import main
main()
"""


def killed_while_writing(program, num_bytes, *arguments):
    """Run a program that kill -9 ends after so many bytes of weights."""
    command = [sys.executable, "-c", KILLED_WHILE_WRITING.format(program=program), str(num_bytes), *arguments]
    killed = subprocess.run([str(part) for part in command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr


def test_killed_conversions_leave_nothing_that_looks_finished_and_are_made_whole(lab, tmp_path):
    """The second call ends with the same bytes as one that was never killed."""
    from tools.export_hf import main as export_main
    from tools.import_hf import main as import_main

    imported, exported = tmp_path / "imported", tmp_path / "exported"
    conversions = [("import_hf", import_main, imported, [f"model={lab / 'llama'}"]),
                   ("export_hf", export_main, exported, [f"checkpoint={imported}", "max_file_gigabytes=1e-4"])]
    for program, main, output, settings in conversions:
        arguments = ["--output", output, *settings, "parity=false"]
        killed_while_writing(program, 150_000, *arguments)
        assert not output.exists()
        assert not (partial_folder(output) / MANIFEST).exists()
        assert main_with(main, *arguments) == 0
        assert main_with(main, "--output", tmp_path / "whole", *settings, "parity=false") == 0
        whole = Artifact.open(tmp_path / "whole")
        assert Artifact.open(output).content_hash == whole.content_hash
        assert Artifact.open(output).verify() == []
        shutil.rmtree(whole.path)


def another_of(model, folder):
    """A model of the same shape with other weights."""
    shutil.copytree(model, folder)
    changed = {name: value + 0.1 * torch.randn(value.shape, generator=torch.Generator().manual_seed(len(name)))
               for name, value in tensors(model).items()}
    save_file({name: value.to(tensors(model)[name].dtype) for name, value in changed.items()},
              folder / "model.safetensors", metadata={"format": "pt"})
    streamed = folder.with_name(folder.name + "-streamed")
    streamed.mkdir()
    write_megatron_checkpoint(folder, streamed)
    return folder, streamed


@pytest.mark.parametrize("weights", [None, [1, 2.5, 0.25]], ids=["mean", "weighted"])
@pytest.mark.parametrize("name", ["llama", "llama_tied_scaled", "mistral", "qwen2"])
def test_a_merge_of_any_layouts_is_the_mean_in_float64(lab, name, weights, tmp_path):
    """Parents of tp 2 x pp 2, of one process and of pp 2; mistral is stored in bfloat16, two have tied embeddings."""
    other, streamed = another_of(lab / name, tmp_path / "other")
    merged, exported = tmp_path / "merged", tmp_path / "exported"
    merged.mkdir()
    exported.mkdir()
    write_merged([lab / f"{name}-2-2", streamed, lab / f"{name}-1-2"], merged, weights)
    write_hf_folder(merged, exported)
    ours, theirs = tensors(lab / name), tensors(other)
    for tensor, value in tensors(exported).items():
        values = [one[tensor].double().numpy() for one in (ours, theirs, ours)]
        expected = torch.from_numpy(np.average(values, axis=0, weights=weights)).to(value.dtype)
        torch.testing.assert_close(value, expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["llama", "llama_tied_scaled", "mistral"])
def test_equal_parents_of_any_layouts_merge_to_the_bytes_of_one(lab, name, tmp_path):
    """Blocks of a few rows each: the seams are seen nowhere."""
    with patch.object(merge, "_BLOCK_ELEMENTS", 300):
        write_merged([lab / f"{name}-{tp}-{pp}" for tp, pp in LAYOUTS], tmp_path, [0.1, 0.2, 0.3, 0.4])
    for file in sorted((lab / f"{name}-streamed").rglob("*")):
        if file.is_file():
            assert (tmp_path / file.relative_to(lab / f"{name}-streamed")).read_bytes() == file.read_bytes(), file


def test_a_killed_merge_is_made_whole(lab, tmp_path):
    from tools.merge_checkpoints import main as merge_main

    parents = []
    for name, layout in (("one", "2-2"), ("two", "1-2")):
        place = tmp_path / name
        produce(place, kind="checkpoint", settings={"name": name}, inputs={}, make=lambda folder, layout=layout: (
            shutil.copytree(lab / f"llama-{layout}", folder, dirs_exist_ok=True) and {"iteration": 3}))
        parents.append(str(place))
    arguments = [f"checkpoints=[{', '.join(parents)}]", "weights=[1, 3]"]
    killed_while_writing("merge_checkpoints", 150_000, "--output", tmp_path / "merged", *arguments)
    assert not (tmp_path / "merged").exists()
    assert not (partial_folder(tmp_path / "merged") / MANIFEST).exists()
    for name in ("merged", "whole"):
        assert main_with(merge_main, "--output", tmp_path / name, *arguments) == 0
    merged = Artifact.open(tmp_path / "merged", kind="checkpoint")
    assert merged.verify() == []
    assert merged.content_hash == Artifact.open(tmp_path / "whole").content_hash
    assert [entry["content_hash"] for entry in merged.manifest["request"]["inputs"].values()] == [
        Artifact.open(parent).content_hash for parent in parents]
    assert not [name for name in merged.manifest["files"] if "parent" in name]


def test_a_training_run_is_exported_while_it_goes_on(tmp_path):
    """A second process follows a run that keeps one checkpoint alone; the last export is that of the last weights."""
    from tests.cpu.test_training import BASE, Lab

    training = Lab(tmp_path)
    settings = training.settings("run") | {"checkpoint": {**BASE["checkpoint"], "keep_last": 1}}
    command = [sys.executable, "-m", "tools.export_hf", "--output", str(tmp_path / "exports"),
               f"checkpoint={tmp_path / 'run'}", "follow=true", "poll_seconds=0.05", "parity_positions=32"]
    follower = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    trainer = training.start(settings)
    trainer.communicate()
    printed, _ = follower.communicate(timeout=120)
    assert trainer.returncode == follower.returncode == 0, printed
    [last] = (tmp_path / "run" / "checkpoints").glob("iter_*")
    exports = sorted((tmp_path / "exports").iterdir())
    assert exports[-1].name == last.name
    assert len(exports) == printed.count("parity after export (tp=1 pp=1, float32, 32 positions")
    whole = tmp_path / "whole"
    whole.mkdir()
    write_hf_folder(last, whole)
    for tensor, value in tensors(whole).items():
        assert tensors(exports[-1])[tensor].equal(value)


MEASURE_MEMORY = """
import sys
from pathlib import Path
from megatron_ext.model.hf_export import write_hf_folder
from megatron_ext.model.hf_import import write_megatron_checkpoint
from megatron_ext.model.merge import write_merged

def peak_kib():
    [line] = [line for line in open("/proc/self/status") if line.startswith("VmHWM:")]
    return int(line.split()[1])

def convert(source, work):
    for name in ("checkpoint", "exported", "merged"):
        (work / name).mkdir(parents=True)
    write_megatron_checkpoint(source, work / "checkpoint")
    write_hf_folder(work / "checkpoint", work / "exported")
    write_merged([work / "checkpoint"] * 5, work / "merged")

small, large, work = map(Path, sys.argv[1:])
convert(small, work / "small")  # what is imported on the way is no part of the measurement
before = peak_kib()
convert(large, work / "large")
print(peak_kib() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_model_is_never_in_memory_as_a_whole(tmp_path):
    """280 MB of weights pass through less than 100 MB.

    Two tensors in the making take 30 MB; freed memory that the allocator keeps takes as much again, by chance.
    """
    small = make_hf_model(tmp_path / "small")
    source = make_hf_model(tmp_path / "source", hidden_size=576, intermediate_size=1536, num_hidden_layers=20,
                           num_key_value_heads=6, head_dim=96)
    assert (source / "model.safetensors").stat().st_size > 280e6
    command = [sys.executable, "-c", MEASURE_MEMORY, str(small), str(source), str(tmp_path)]
    measured = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert int(measured.stdout) < 100_000
    assert tensors(tmp_path / "large" / "exported").keys() == tensors(source).keys()
