"""What ends a run that goes wrong; where its metrics go."""

import json
import re
import subprocess
import sys
import time

import numpy as np
import pytest

from megatron_ext.config import GuardConfig
from megatron_ext.errors import UserError
from tests.cpu.test_training import Lab, losses
from tests.cpu.tiny import make_model, make_tokenized

pytestmark = pytest.mark.slow
POISON = 200


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    return Lab(tmp_path_factory.mktemp("guards"))


def test_a_non_finite_loss_names_its_documents_and_changes_nothing(lab):
    """One document has a token whose embedding is not a number."""
    import safetensors.numpy

    settings = lab.settings("poisoned")
    model = make_model(lab.folder / "poisoned-model", vocab_size=256, tie_word_embeddings=False)
    weights = safetensors.numpy.load_file(model / "model.safetensors")
    weights["model.embed_tokens.weight"][POISON] = np.nan
    safetensors.numpy.save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    (model / "manifest.json").unlink()  # a plain folder: what is changed in an artifact is refused
    settings["model"]["hf_folder"] = str(model)
    settings["data"]["sources"] = {"a": {"path": str(make_tokenized(lab.folder / "rare", 7, poison=(5, POISON))),
                                         "fill": True}}
    settings["validation"] = {}
    settings["checkpoint"]["interval_tokens"] = 8 * 32
    process = lab.start(settings)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 2, output
    assert "loss nan in iteration" in output
    assert "stopped before the update" in output
    named = [line for line in output.splitlines() if line.startswith("  sample ")]
    assert len(named) == 1, output
    assert "rare-train-5" in named[0]
    finite = losses(lab.folder / "poisoned")
    assert np.isfinite(finite).all()


def test_data_that_are_cut_off_under_a_run_end_it_with_the_iteration_and_the_file(lab):
    """A map of the file would end every rank with SIGBUS, and without a word."""
    settings = lab.settings("cut", pipeline_model_parallel_size=2)
    cut = make_tokenized(lab.folder / "cut-source", 9)
    settings["data"]["sources"] = {"a": {"path": str(cut), "fill": True, "max_epochs": 1e6}}
    settings["train"]["budget_tokens"] = 20_000 * 8 * 32
    settings["validation"], settings["checkpoint"] = {}, {}
    process = lab.start(settings, 2)
    metrics = lab.folder / "cut" / "metrics.jsonl"
    while not (metrics.exists() and metrics.stat().st_size) and process.poll() is None:
        time.sleep(0.01)
    (cut / "train.bin").write_bytes(b"")
    output, _ = process.communicate(timeout=120)
    assert process.returncode, output
    assert "SIGBUS" not in output
    told = [line for line in output.splitlines() if "cannot be read" in line and "error: " in line]
    assert len(told) == 1, output
    assert re.search(rf"error: iteration \d+ cannot be read: {cut}/train.bin ends at byte", told[0]), output
    iteration = int(re.search(r"iteration (\d+)", told[0])[1])
    assert len(losses(lab.folder / "cut")) == iteration - 1


def test_a_run_that_only_skips_has_diverged():
    from megatron_ext.training.guards import SpikeGuard

    guard = SpikeGuard(GuardConfig(spike_factor=3, spike_window_iters=2, max_skipped_in_a_row=2))
    assert [guard.is_spike(norm) for norm in (1.0, 50.0, 1.0, 9.0, 1.1)] == [False, False, False, False, False]
    assert guard.is_spike(40.0)
    assert guard.is_spike(40.0)
    with pytest.raises(UserError, match=r"3 iterations in a row .* the run has diverged"):
        guard.is_spike(40.0)


def test_a_rank_that_hangs_writes_its_stack_and_ends(tmp_path):
    program = f"""
import time
from pathlib import Path
import torch.distributed as dist
from megatron_ext.training.guards import Watchdog
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
watchdog = Watchdog(1 / 60, Path({str(tmp_path)!r}))
def waits_for_ever():
    time.sleep(120)
waits_for_ever()
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 1, result.stderr
    assert "waits_for_ever" in (tmp_path / "hang-rank0.txt").read_text()


def test_every_tracker_gets_the_losses(lab, monkeypatch):
    """W&B and MLflow without a server: they write files."""
    import mlflow

    store = (lab.folder / "mlflow").as_uri()
    for name, value in {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "MLFLOW_TRACKING_URI": store,
                        "MLFLOW_ALLOW_FILE_STORE": "true"}.items():
        monkeypatch.setenv(name, value)
    settings = lab.settings("tracked")
    settings["logging"] = {"tensorboard": True, "wandb_project": "tests", "mlflow_experiment": "tests"}
    lab.run(settings)
    expected = losses(lab.folder / "tracked")
    client = mlflow.MlflowClient(store)
    run, = client.search_runs([client.get_experiment_by_name("tests").experiment_id])
    history = client.get_metric_history(run.info.run_id, "train/loss")
    assert [metric.value for metric in sorted(history, key=lambda metric: metric.step)] == expected
    assert list(lab.folder.glob("wandb/offline-run-*/*.wandb"))
    assert tensorboard_scalars(lab.folder / "tracked" / "tensorboard", "train/loss") == pytest.approx(expected)


def tensorboard_scalars(folder, name):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return [event.value for event in events.Scalars(name)]


def test_which_documents_were_in_an_iteration(lab):
    """tools.show_batch against the dataset itself: all documents' tokens over a whole pass."""
    settings = lab.settings("shown")
    settings["data"]["sources"] = {"a": {"path": str(lab.sources["a"]), "fill": True}}
    config = lab.folder / "shown.yaml"
    config.write_text(json.dumps(settings))

    def show(iteration):
        return subprocess.run([sys.executable, "-m", "tools.show_batch", "--config", str(config), "--iteration",
                               str(iteration)], capture_output=True, text=True, check=False)

    rows = [json.loads(line) for line in show(2).stdout.splitlines()]
    assert sorted({row["sample"] for row in rows}) == list(range(8, 16))
    assert sum(row["num_tokens"] for row in rows) in range(7 * 32 + 1, 8 * 32 + 1)
    assert all(row["id"] == f"a-train-{row['sequence']}" and row["source"] == "a" for row in rows)
    assert "there is no iteration 99" in show(99).stderr
