"""Real training runs of a tiny Llama under torchrun and gloo."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import yaml

from megatron_ext.artifacts import Artifact
from megatron_ext.config import RunConfig
from megatron_ext.data.blend import plan_blend
from megatron_ext.settings import validate
from tests.cpu.tiny import make_model, make_tokenized

pytestmark = pytest.mark.slow
ITERATIONS = 6
BASE = {
    "model": {"dtype": "float32"},
    "data": {"seq_length": 32, "sources": {"a": {"fill": True}, "b": {"fraction": 0.25}}},
    "train": {"budget_tokens": ITERATIONS * 8 * 32, "global_batch_size": 8},
    "optimizer": {"lr": 3e-3, "min_lr": 3e-4},
    "schedule": {"warmup_fraction": 0.2},
    "checkpoint": {"interval_tokens": 2 * 8 * 32},
}


class Lab:
    """Inputs of all runs, and a way to start one."""

    def __init__(self, folder):
        self.folder = folder
        self.model = make_model(folder / "model")
        self.sources = {name: make_tokenized(folder / name, seed) for seed, name in enumerate("ab")}

    def settings(self, name, **parallel):
        settings = json.loads(json.dumps(BASE))
        settings["output"] = str(self.folder / name)
        settings["model"]["hf_folder"] = str(self.model)
        for source, path in self.sources.items():
            settings["data"]["sources"][source]["path"] = str(path)
        settings["validation"] = {"sources": {name: str(path) for name, path in self.sources.items()}}
        settings["parallel"] = parallel
        return settings

    def start(self, settings, num_processes=1):
        config = self.folder / "config.yaml"
        config.write_text(yaml.safe_dump(settings))
        program = ["-m", "megatron_ext.train", "--config", str(config)]
        if num_processes > 1:
            program = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_processes), *program]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen([sys.executable, *program], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                                env=environment)

    def run(self, settings, num_processes=1):
        process = self.start(settings, num_processes)
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output
        return output


def events(folder, kind):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["event"] == kind]


def losses(folder):
    return [row["loss"] for row in events(folder, "train")]


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    return Lab(tmp_path_factory.mktemp("lab"))


@pytest.fixture(scope="module")
def reference(lab):
    lab.run(lab.settings("reference"))
    return lab.folder / "reference"


def test_the_run_folder_tells_everything(lab, reference):
    run = Artifact.open(reference, kind="run")
    assert run.counts["iterations"] == ITERATIONS
    validations = events(reference, "validation")
    assert [row["iteration"] for row in validations] == [0, ITERATIONS]
    for source in "ab":
        before, after = (row["sources"][source] for row in validations)
        assert after["nats_per_token"] < before["nats_per_token"]
        assert after["num_tokens"] == before["num_tokens"] > 100
    ledger = json.loads((reference / "exposure.json").read_text())["sources"]
    assert sum(entry["samples"] for entry in ledger.values()) == ITERATIONS * 8
    checkpoint = Artifact.open(reference / run.counts["checkpoint"], kind="checkpoint")
    assert checkpoint.verify() == []


def test_equal_to_a_plain_transformers_loop(lab, reference):
    """The same samples through transformers and torch.optim.AdamW: the same losses."""
    import torch
    from transformers import AutoModelForCausalLM

    from megatron_ext.data.dataset import BlendedDataset, PackedSource

    config = validate(RunConfig, lab.settings("unused"), where="test")
    sizes = {name: Artifact.open(path).counts["train"]["tokens"] for name, path in lab.sources.items()}
    dataset = BlendedDataset(plan_blend(config, sizes), [
        PackedSource(path / "train", name, 32, seed=0) for name, path in lab.sources.items()])
    model = AutoModelForCausalLM.from_pretrained(lab.model, dtype=torch.float32)
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW([{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}],
                                  lr=0.0, betas=(0.9, 0.95), eps=1e-8)
    expected = []
    for row in events(reference, "train"):
        first = (row["iteration"] - 1) * 8
        samples = [dataset[position] for position in range(first, first + 8)]
        tokens, labels, mask = (torch.from_numpy(np.stack([getattr(s, name) for s in samples]))
                                for name in ("tokens", "labels", "mask"))
        logits = model(tokens).logits
        nats = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
        loss = (nats * mask.flatten()).sum() / mask.sum()
        expected.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = row["lr"]
        optimizer.step()
    np.testing.assert_allclose(losses(reference), expected, rtol=1e-4)
    assert expected[-1] < expected[0] - 0.1


@pytest.mark.parametrize(("layout", "num_processes"), [
    ({"tensor_model_parallel_size": 2, "pipeline_model_parallel_size": 2}, 4),
    ({"tensor_model_parallel_size": 2, "sequence_parallel": True}, 4),
    ({"pipeline_model_parallel_size": 2}, 2),
], ids=["tp2pp2", "tp2sp_dp2", "pp2"])
def test_every_layout_gives_the_losses_of_one_process(lab, reference, layout, num_processes):
    name = "-".join(layout)
    lab.run(lab.settings(name, **layout), num_processes)
    np.testing.assert_allclose(losses(lab.folder / name), losses(reference), rtol=1e-5)
    for ours, theirs in zip(events(lab.folder / name, "validation"), events(reference, "validation"), strict=True):
        for source in "ab":
            np.testing.assert_allclose(list(ours["sources"][source].values()), list(theirs["sources"][source].values()),
                                       rtol=1e-5)


def test_kill_9_and_again_gives_the_same_bits(lab):
    """Killed after the first checkpoint, under pipeline parallelism; then the same run undisturbed."""
    def settings(name):
        settings = lab.settings(name, pipeline_model_parallel_size=2)
        settings["train"]["budget_tokens"] *= 4
        settings["data"]["sources"]["a"]["max_epochs"] = 8
        settings["data"]["sources"]["b"]["max_epochs"] = 8
        return settings

    lab.run(settings("undisturbed"), 2)
    killed = settings("killed")
    process = lab.start(killed, 2)
    latest = lab.folder / "killed" / "checkpoints" / "latest"
    deadline = time.monotonic() + 120
    while not latest.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)  # ends when every process of the run has gone
    assert latest.exists()
    assert not (lab.folder / "killed" / "manifest.json").exists()
    output = lab.run(killed, 2)
    assert "resumed after iteration" in output
    assert losses(lab.folder / "killed") == losses(lab.folder / "undisturbed")
    assert [row["sources"] for row in events(lab.folder / "killed", "validation")] == [
        row["sources"] for row in events(lab.folder / "undisturbed", "validation")]


def test_stop_file_then_resume_under_another_layout(lab, reference):
    settings = lab.settings("stopped")
    process = lab.start(settings)
    metrics = lab.folder / "stopped" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.exists() and '"train"' in metrics.read_text()) and time.monotonic() < deadline:
        time.sleep(0.01)
    (lab.folder / "stopped" / "STOP").touch()
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert "asked to stop" in output
    lab.run(lab.settings("stopped", tensor_model_parallel_size=2), 2)
    np.testing.assert_allclose(losses(lab.folder / "stopped"), losses(reference), rtol=1e-5)


def test_a_changed_blend_is_refused_on_resume(lab, reference):
    settings = lab.settings("reference")
    settings["data"]["sources"]["b"]["fraction"] = 0.5
    process = lab.start(settings)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 2, output
    assert "data.sources.b.fraction was 0.25, is 0.5" in output


def test_all_problems_of_a_run_at_once(lab):
    settings = lab.settings("broken", tensor_model_parallel_size=3, sequence_parallel=True)
    settings["data"]["seq_length"] = 256
    settings["data"]["sources"]["b"]["path"] = str(lab.folder / "absent")
    settings["optimizer"]["min_lr"] = 1.0
    process = lab.start(settings)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 2, output
    for problem in ("1 processes are no multiple of", "does not divide the model's 4 attention heads",
                    "above the model's max_position_embeddings 128", "absent", "min_lr 1 is above"):
        assert problem in output
