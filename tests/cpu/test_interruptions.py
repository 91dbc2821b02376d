"""Runs that are ended in every way and started again: the losses must be those of an undisturbed run, to the bit."""

import json
import signal
import time

import numpy as np
import pytest

from megatron_ext.artifacts import Artifact
from tests.cpu.test_training import Lab, events, losses

pytestmark = pytest.mark.slow
ITERATIONS = 24


class InterruptedLab(Lab):
    """Runs of two pipeline stages that save every other iteration."""

    def settings(self, name, **changes):
        settings = super().settings(name, pipeline_model_parallel_size=2)
        settings["train"]["budget_tokens"] = ITERATIONS * 8 * 32
        for source in settings["data"]["sources"].values():
            source["max_epochs"] = 8
        settings["validation"] = {}
        for section, values in changes.items():
            settings.setdefault(section, {}).update(values)
        return settings

    def wait_for(self, name, pattern, process, at_least=1):
        """Wait until so many files of the run's folder match."""
        deadline = time.monotonic() + 120
        while len(list((self.folder / name).glob(pattern))) < at_least:
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.002)


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    return InterruptedLab(tmp_path_factory.mktemp("interrupted"))


@pytest.fixture(scope="module")
def undisturbed(lab):
    lab.run(lab.settings("undisturbed"), 2)
    return losses(lab.folder / "undisturbed")


def finish_and_compare(lab, settings, undisturbed):
    name = settings["output"].rsplit("/", 1)[1]
    assert not (lab.folder / name / "manifest.json").exists()
    assert "resumed after iteration" in lab.run(settings, 2)
    assert losses(lab.folder / name) == undisturbed
    assert Artifact.open(lab.folder / name, kind="run").verify() == []


def test_sigterm_saves_once_on_all_ranks(lab, undisturbed):
    """torchrun hands the signal to every worker."""
    settings = lab.settings("terminated", checkpoint={"interval_tokens": None})
    process = lab.start(settings, 2)
    lab.wait_for("terminated", "hang-rank1.txt", process)  # the loop begins
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert output.count("asked to stop; saved after iteration") == 1, output
    checkpoints = sorted((lab.folder / "terminated" / "checkpoints").glob("iter_*"))
    assert len(checkpoints) == 1
    assert Artifact.open(checkpoints[0], kind="checkpoint").verify() == []
    finish_and_compare(lab, settings, undisturbed)


@pytest.mark.parametrize("asynchronous", [False, True], ids=["synchronous", "asynchronous"])
def test_kill_9_in_the_middle_of_a_save(lab, undisturbed, asynchronous):
    name = f"killed-{asynchronous}"
    settings = lab.settings(name, checkpoint={"asynchronous": asynchronous})
    process = lab.start(settings, 2)
    lab.wait_for(name, "checkpoints/latest", process)
    lab.wait_for(name, "checkpoints/*partial*/*", process)
    process.kill()
    process.communicate(timeout=60)
    assert list((lab.folder / name / "checkpoints").glob("*partial*"))
    finish_and_compare(lab, settings, undisturbed)
    assert not list((lab.folder / name / "checkpoints").glob("*partial*"))


def test_kill_9_then_another_layout(lab, undisturbed):
    settings = lab.settings("moved")
    process = lab.start(settings, 2)
    lab.wait_for("moved", "checkpoints/latest", process)
    process.kill()
    process.communicate(timeout=60)
    settings["parallel"] = {"tensor_model_parallel_size": 2, "sequence_parallel": True}
    assert "resumed after iteration" in lab.run(settings, 2)
    np.testing.assert_allclose(losses(lab.folder / "moved"), undisturbed, rtol=1e-5)


def test_the_time_is_over(lab, undisturbed):
    settings = lab.settings("timed", train={"exit_duration_minutes": 1e-4})
    assert "asked to stop; saved after iteration 1" in lab.run(settings, 2)
    settings["train"]["exit_duration_minutes"] = None
    finish_and_compare(lab, settings, undisturbed)


def test_spikes_are_skipped_and_the_rule_survives_a_restart(lab):
    def spiky(name, **train):
        return lab.settings(name, guard={"spike_factor": 1.25, "spike_window_iters": 3, "max_skipped_in_a_row": 24},
                            train=train, validation={"sources": {"a": str(lab.sources["a"])},
                                                     "interval_tokens": 8 * 32})

    lab.run(spiky("spikes"), 2)
    rows = events(lab.folder / "spikes", "train")
    accepted = []
    for row in rows:
        spike = len(accepted) >= 3 and row["grad_norm"] > 1.25 * sorted(accepted[-3:])[1]
        assert row["skipped"] == spike
        accepted += [] if spike else [row["grad_norm"]]
    assert 0 < len(rows) - len(accepted) < len(rows)
    held_out = {row["iteration"]: row["sources"] for row in events(lab.folder / "spikes", "validation")}
    for row in rows:
        unchanged = held_out[row["iteration"]] == held_out[row["iteration"] - 1]
        assert unchanged == row["skipped"]

    first_skip = next(row["iteration"] for row in rows if row["skipped"])
    stopped = spiky("spikes-stopped")
    process = lab.start(stopped, 2)
    lab.wait_for("spikes-stopped", f"checkpoints/iter_{2 * (first_skip // 2 + 1):07d}", process)
    process.kill()
    process.communicate(timeout=60)
    lab.run(stopped, 2)
    assert losses(lab.folder / "spikes-stopped") == losses(lab.folder / "spikes")
    assert json.dumps(events(lab.folder / "spikes-stopped", "validation")) == json.dumps(
        events(lab.folder / "spikes", "validation"))
