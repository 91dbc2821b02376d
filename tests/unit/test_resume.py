"""Which checkpoint a run goes on from, told without torch: folders are made as the trainer makes them."""

import json
import shutil
from random import Random

import pytest
import yaml

from megatron_ext.artifacts import ASIDE, is_finished, publish_in_place, write_json
from megatron_ext.config import RunConfig
from megatron_ext.errors import UserError
from megatron_ext.manifest import MANIFEST
from megatron_ext.settings import overlay, validate
from megatron_ext.training.resume import begin, changes_on_the_way, find_start
from megatron_ext.training.run_folder import (
    LATEST,
    RUN_STATE,
    checkpoint_folder,
    checkpoint_folders,
    mark_kept,
    run_identity,
)
from tests.damage import HARMS, delete


class Run:
    """A run folder with checkpoints after some iterations."""

    def __init__(self, folder):
        self.folder = folder
        for name in ("model", "a"):
            (folder / name).mkdir()
            (folder / name / "bytes").write_text(name)

    def config(self, **changes):
        values = {"output": str(self.folder / "run"), "model": {"hf_folder": str(self.folder / "model")},
                  "data": {"seq_length": 32, "sources": {"a": {"path": str(self.folder / "a"), "fill": True}}},
                  "train": {"budget_tokens": 32 * 8 * 12, "global_batch_size": 8}}
        return validate(RunConfig, overlay(values, changes), "test")

    def launch(self, config, num_processes=1):
        start = find_start(config)
        begin(config, start, num_processes)
        return start

    def save(self, iteration, config=None):
        config = config or self.config()
        folder = checkpoint_folder(config, iteration)
        folder.mkdir(parents=True)
        (folder / "weights.distcp").write_text(f"weights {iteration}")
        write_json(folder / RUN_STATE, {"iteration": iteration, "identity": run_identity(config)})
        publish_in_place(folder, kind="checkpoint", settings={}, inputs={}, counts={"iteration": iteration})
        (folder.parent / LATEST).write_text(folder.name + "\n")
        return folder


@pytest.fixture
def run(tmp_path):
    return Run(tmp_path)


@pytest.fixture
def saved(run):
    """Checkpoints after 2, 4 and 6 iterations."""
    run.launch(run.config())
    for iteration in (2, 4, 6):
        run.save(iteration)
    return run


def latest(run):
    return (run.folder / "run" / "checkpoints" / LATEST).read_text().strip()


def names(folder):
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def test_a_run_that_was_not_begun_begins_without_a_word(run):
    assert find_start(run.config()).iteration == 0
    assert find_start(run.config()).told == ()
    assert not (run.folder / "run").exists()


def test_the_newest_checkpoint_is_gone_on_from(saved):
    start = saved.launch(saved.config())
    assert (start.iteration, start.told, start.set_aside) == (6, (), ())
    assert "after iteration 6" in start.describe()


@pytest.mark.parametrize("content", [None, "", "iter_0000008\n", "nonsense\n", b"\xff\xfe"])
def test_latest_that_is_missing_or_leads_nowhere(saved, content):
    pointer = saved.folder / "run" / "checkpoints" / LATEST
    pointer.unlink()
    if content is not None:
        pointer.write_bytes(content if isinstance(content, bytes) else content.encode())
    start = saved.launch(saved.config())
    assert start.iteration == 6
    assert "going on from the newest whole checkpoint, iter_0000006" in start.told[-1]
    assert LATEST in start.told[0]
    assert latest(saved) == "iter_0000006"


@pytest.mark.parametrize("harm, file", [*((harm, "weights.distcp") for harm in HARMS), (delete, MANIFEST)])
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_it_used(saved, harm, file):
    folder = checkpoint_folder(saved.config(), 6)
    harm(folder / file, Random(0))
    start = saved.launch(saved.config())
    assert start.iteration == 4
    assert latest(saved) == "iter_0000004"
    assert start.told
    if file != MANIFEST:
        assert names(folder.parent / ASIDE) == ["iter_0000006"]


def test_when_all_are_damaged_the_run_begins_again_and_says_so(saved):
    for folder in checkpoint_folders(saved.config()):
        (folder / "weights.distcp").write_text("?")
    start = saved.launch(saved.config())
    assert (start.iteration, start.checkpoint) == (0, None)
    assert "begins again" in start.told[-1]
    assert len(names(saved.folder / "run" / "checkpoints" / ASIDE)) == 3


def test_latest_set_back_is_a_rollback(saved):
    (saved.folder / "run" / "checkpoints" / LATEST).write_text("iter_0000002\n")
    start = saved.launch(saved.config())
    assert start.iteration == 2
    assert start.told[0].startswith("going back to iter_0000002: iter_0000004, iter_0000006 are set aside")
    assert names(saved.folder / "run" / "checkpoints" / ASIDE) == ["iter_0000004", "iter_0000006"]
    saved.save(4)
    assert find_start(saved.config()).iteration == 4


def test_resume_from_goes_back_once(saved):
    config = saved.config(resume_from="iter_0000002")
    assert saved.launch(config).iteration == 2
    saved.save(4)
    assert saved.launch(config).iteration == 4  # a job that is started again
    assert saved.launch(saved.config()).iteration == 4
    assert saved.launch(saved.config(resume_from="iter_2")).iteration == 2  # asked anew
    assert names(saved.folder / "run" / "checkpoints" / ASIDE) == ["iter_0000004", "iter_0000004-2", "iter_0000006"]


def test_resume_from_a_checkpoint_that_is_not_there(saved):
    with pytest.raises(UserError, match=r"iter_0000003: no whole .* are: iter_0000002, iter_0000004, iter_0000006"):
        find_start(saved.config(resume_from="iter_0000003"))


def test_deciding_settings_may_not_change_and_nothing_is_written(saved):
    before = {path: path.read_bytes() for path in (saved.folder / "run").rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=r"optimizer\.lr was 2e-05, is 0\.001.*train\.seed was 0, is 1"):
        saved.launch(saved.config(optimizer={"lr": 1e-3}, train={"seed": 1}))
    (saved.folder / "a" / "bytes").write_text("b")
    with pytest.raises(UserError, match=r"data\.sources\.a\.path was"):
        saved.launch(saved.config())
    assert before == {path: path.read_bytes() for path in (saved.folder / "run").rglob("*") if path.is_file()}


@pytest.mark.parametrize("changes", [
    {"guard": {"spike_factor": 4.0}}, {"model": {"recompute_activations": True}}, {"train": {"micro_batch_size": 4}},
    {"data": {"sources": {"a": {"max_epochs": 3.0}}}}, {"checkpoint": {"keep_last": 1}},
    {"logging": {"tensorboard": True}}, {"validation": {"interval_tokens": 1000}},
    {"parallel": {"tensor_model_parallel_size": 2}},
    {"model": {"layer_implementation": "transformer_engine"}}])
def test_what_does_not_change_the_past_may_change(saved, changes):
    assert saved.launch(saved.config(**changes)).iteration == 6


def test_changes_of_the_layout_are_recorded_with_their_iteration(saved):
    run = saved.folder / "run"
    assert changes_on_the_way(run) == []
    saved.launch(saved.config(guard={"spike_factor": 4.0}), num_processes=2)
    saved.launch(saved.config(guard={"spike_factor": 4.0}), num_processes=2)  # the same again is no change
    assert changes_on_the_way(run) == [
        {"iteration": 6, "key": "guard.spike_factor", "before": None, "now": 4.0},
        {"iteration": 6, "key": "num_processes", "before": 1, "now": 2}]
    saved.save(8)
    saved.launch(saved.config())
    assert [one["iteration"] for one in changes_on_the_way(run)] == [6, 6, 8, 8]
    saved.launch(saved.config(resume_from="iter_0000002"))  # before any change
    assert changes_on_the_way(run) == []


def test_iterations_that_lie_ahead_may_be_skipped_those_of_the_past_not(saved):
    ahead = {"train": {"skip_iterations": [[7, 9]]}}
    assert saved.launch(saved.config(**ahead)).iteration == 6
    saved.save(8, saved.config(**ahead))
    with pytest.raises(UserError, match=r"skip_iterations was \[\[7, 8\]\], is \[\]"):
        find_start(saved.config())
    assert find_start(saved.config(train={"skip_iterations": [[7, 8], [11, 11]]})).iteration == 8


def test_a_checkpoint_of_an_older_version_is_gone_on_from(saved):
    """Version 1 kept the whole of model, data, train and guard in the identity, and no layout."""
    config = saved.config()
    identity = config.model_dump(mode="json", exclude={"output", "parallel", "checkpoint", "validation", "logging"})
    now = run_identity(config)
    identity["model"]["hf_folder"] = now["model"]["hf_folder"]
    identity["data"]["sources"]["a"]["path"] = now["data"]["sources"]["a"]["path"]
    del identity["train"]["skip_iterations"], identity["resume_from"], identity["guard"]["hang_minutes"]
    folder = checkpoint_folder(config, 6)
    shutil.rmtree(folder)
    folder.mkdir()
    write_json(folder / RUN_STATE, {"iteration": 6, "identity": identity})
    publish_in_place(folder, kind="checkpoint", settings={}, inputs={}, counts={})
    plain = yaml.safe_load((saved.folder / "run" / "config.yaml").read_text())
    plain["parallel"]["use_distributed_optimizer"] = False
    (saved.folder / "run" / "config.yaml").write_text(yaml.safe_dump(plain))
    assert find_start(saved.config(parallel={"use_distributed_optimizer": False})).iteration == 6
    with pytest.raises(UserError, match=r"use_distributed_optimizer was False, is True"):
        find_start(config)


def test_what_a_cut_save_left_is_swept(saved):
    left = saved.folder / "run" / "checkpoints" / "iter_0000008.partial"
    left.mkdir()
    (left / "half").write_text("half")
    saved.launch(saved.config())
    assert not left.exists()


def test_a_finished_run_stays_finished_without_its_old_checkpoints(saved):
    last = saved.save(12)
    publish_in_place(saved.folder / "run", kind="run", settings={"run": run_identity(saved.config())}, inputs={},
                     counts={"checkpoint": "checkpoints/iter_0000012"},
                     beside=lambda name: not name.startswith("checkpoints/iter_0000012/"))
    for iteration in (2, 4):
        shutil.rmtree(checkpoint_folder(saved.config(), iteration))
    assert find_start(saved.config()).is_finished
    (last / "weights.distcp").write_text("weights 13")
    mark_kept(last)
    shutil.rmtree(last)
    with pytest.raises(UserError, match="is missing"):
        find_start(saved.config())


def test_a_finished_run_can_go_back(saved):
    saved.save(12)
    publish_in_place(saved.folder / "run", kind="run", settings={"run": run_identity(saved.config())}, inputs={},
                     counts={}, beside=lambda name: True)
    start = saved.launch(saved.config(resume_from="iter_0000004", train={"skip_iterations": [[5, 5]]}))
    assert start.iteration == 4
    assert not is_finished(saved.folder / "run")
    assert json.loads((saved.folder / "run" / ASIDE / "manifest.json").read_text())["request"]["kind"] == "run"
