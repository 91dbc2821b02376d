"""Runs that leave a checkpoint of another run: equal to the run that went on, or on their own blend and schedule."""

import json
import time

import numpy as np
import pytest

from megatron_ext.artifacts import Artifact
from megatron_ext.config import RunConfig
from megatron_ext.lineage import Places, verify
from megatron_ext.model.merge import merge_checkpoints
from megatron_ext.model.settings import MergeSettings
from megatron_ext.settings import overlay, validate
from megatron_ext.training.run_folder import is_kept
from tests.cpu.launch import run_distributed
from tests.cpu.saved import saved_tensors
from tests.cpu.test_grid import BF16, ITERATIONS, PLAIN, PP2, num_different, settings
from tests.cpu.test_training import Lab as TrainingLab
from tests.cpu.test_training import events, losses
from tests.cpu.tiny import make_tokenized
from tools.show_batch import main as show_batch

pytestmark = pytest.mark.slow
ITERATION_TOKENS = 8 * 32
LEAVES_AT = 4
KINDS = {"fp32": {}, "bf16": BF16, "fp32-plain": {"parallel": PLAIN}, "bf16-plain": BF16 | {"parallel": PLAIN}}
OWN = {  # another budget, learning rate, decay and seed, and a second source
    "train": {"budget_tokens": 12 * ITERATION_TOKENS, "seed": 7}, "optimizer": {"lr": 1e-3, "min_lr": 1e-4,
                                                                                  "adam_beta2": 0.9},
    "schedule": {"style": "WSD", "warmup_iters": 2, "decay_iters": 5, "wsd_decay_style": "linear"},
}

EXTENDED = {"constant": {"style": "constant"}, "WSD": {"style": "WSD", "decay_fraction": 0.4}}
"""The first is finished before it is extended, the second is stopped before its decay."""


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    folder = tmp_path_factory.mktemp("branches")
    base = settings(folder)
    new = make_tokenized(folder / "new", 5)
    base["checkpoint"] = {"keep_tokens": [LEAVES_AT * ITERATION_TOKENS]}
    base["validation"] = {}

    def start(trunk, **more):
        return {"start": {"checkpoint": f"{folder}/runs/{trunk}/checkpoints/iter_{LEAVES_AT:07d}", **more}}

    variants = {}
    for kind, changes in KINDS.items():
        variants |= {kind: changes, f"branch-{kind}": changes | start(kind)}
    own = OWN | start("fp32") | {"data": {"sources": {
        "a": {"fill": False, "fraction": 0.5}, "b": {"fraction": 0.25},
        "new": {"path": str(new), "fraction": 0.25, "max_epochs": 3}}}}
    stopped = overlay(own, {"train": {"exit_duration_minutes": 1e-9}})
    variants |= {
        "branch-pp2": {"parallel": PP2} | start("fp32"),
        "own": own, "own-stopped": stopped, "own-stopped#again": own,
        "weights": start("fp32", optimizer=False), "weights-bf16": BF16 | start("bf16", optimizer=False),
        "second": overlay(own, {"train": {"seed": 9}, "start": {
            "checkpoint": f"{folder}/runs/own/checkpoints/iter_0000012"}}) | {
                "optimizer": {"lr": 2e-3, "min_lr": 0.0},
                "schedule": {"style": "constant", "warmup_iters": 2}},
    }
    variants["second"]["train"]["budget_tokens"] = 16 * ITERATION_TOKENS
    for kind, schedule in EXTENDED.items():
        long = {"schedule": schedule, "data": {"sources": {"b": {"fraction": 0.33}}}}
        short = overlay(long, {"train": {"budget_tokens": 7 * ITERATION_TOKENS, **(
            {} if kind == "constant" else {"exit_duration_minutes": 1e-9})}})
        variants |= {f"long-{kind}": long, f"extended-{kind}": short, f"extended-{kind}#again": long}
    run_distributed("tests.cpu.cases_training:runs", 2, timeout_seconds=500, base=base, variants=variants)
    return Lab(folder, base, variants)


class Launcher(TrainingLab):
    """The program under torchrun."""

    def __init__(self, folder):
        self.folder = folder


class Lab:
    def __init__(self, folder, base, variants):
        self.folder, self.runs = folder, folder / "runs"
        self._base, self._variants = base, variants

    def config(self, name):
        return validate(RunConfig, overlay(self._base, self._variants.get(name, {})) | {
            "output": str(self.runs / name)}, name)

    def exposure(self, name):
        return json.loads((self.runs / name / "exposure.json").read_text())

    def shown(self, name, iterations, capsys):
        """Source -> (sequence, token in it) of all that some iterations have shown, in order."""
        shown = {"a": [], "b": [], "new": []}
        capsys.readouterr()
        for iteration in iterations:
            show_batch(["--config", str(self.runs / name / "config.yaml"), "--iteration", str(iteration)])
            for row in map(json.loads, capsys.readouterr().out.splitlines()):
                shown[row["source"]] += [(row["sequence"], row["start"] + i) for i in range(row["num_tokens"])]
        return shown


@pytest.mark.parametrize("kind", KINDS)
def test_an_unchanged_branch_equals_the_run_that_went_on(lab, kind):
    assert losses(lab.runs / f"branch-{kind}") == losses(lab.runs / kind)[LEAVES_AT:]
    assert [row["lr"] for row in events(lab.runs / f"branch-{kind}", "train")] == [
        row["lr"] for row in events(lab.runs / kind, "train")][LEAVES_AT:]
    assert num_different(lab.runs / f"branch-{kind}", lab.runs / kind) == 0
    assert lab.exposure(f"branch-{kind}")["sources"] == lab.exposure(kind)["sources"]


def test_an_unchanged_branch_on_another_layout(lab):
    np.testing.assert_allclose(losses(lab.runs / "branch-pp2"), losses(lab.runs / "fp32")[LEAVES_AT:], rtol=1e-5)


def test_the_learning_rates_of_a_branch_are_those_of_its_formula(lab):
    rows = events(lab.runs / "own", "train")
    assert [row["iteration"] for row in rows] == list(range(LEAVES_AT + 1, 13))
    for row in rows:
        decayed = max(0, row["iteration"] - 7) / 5
        assert row["lr"] == pytest.approx(1e-3 - decayed * (1e-3 - 1e-4), rel=1e-12)
    assert {row["lr"] for row in events(lab.runs / "second", "train")} == {2e-3}


def test_a_branch_takes_its_own_settings_of_the_optimizer(lab):
    import torch

    groups = torch.load(lab.runs / "own" / "checkpoints" / "iter_0000012" / "common.pt", weights_only=False)
    groups = groups["optimizer"]["optimizer"]["param_groups"]
    assert {(group["max_lr"], group["min_lr"], tuple(group["betas"])) for group in groups} == {
        (1e-3, 1e-4, (0.9, 0.9))}
    assert {group["step"] for group in groups} == {12.0}


def test_nothing_is_repeated_before_its_pass_ends(lab, capsys):
    """Trunk, branch and the branch of that, each with another seed: every token once until all were shown."""
    shown = lab.shown("second", range(1, 17), capsys)
    for source, tokens in shown.items():
        size = Artifact.open(lab.folder / source).counts["train"]["tokens"]
        assert len(set(tokens[:size])) == min(size, len(tokens))
    assert len(shown["a"]) > Artifact.open(lab.folder / "a").counts["train"]["tokens"]  # into the next pass
    trunk = lab.shown("fp32", range(1, LEAVES_AT + 1), capsys)
    assert shown["a"][:len(trunk["a"])] == trunk["a"]
    ours, theirs = (lab.shown(name, range(LEAVES_AT + 1, ITERATIONS + 1), capsys) for name in ("own", "fp32"))
    assert ours["b"] != theirs["b"]  # another seed deals out what is left anew


def test_the_ledger_tells_trunk_and_branch_together(lab):
    trunk, branch = lab.exposure("fp32"), lab.exposure("own")
    assert sum(source["samples"] for source in branch["sources"].values()) == 12 * 8
    assert branch["trunk"]["iteration"] == LEAVES_AT
    assert sum(source["samples"] for source in branch["trunk"]["sources"].values()) == LEAVES_AT * 8
    assert branch["sources"]["new"]["samples"] == 16
    assert "trunk" not in trunk


def test_a_stopped_branch_goes_on_as_itself(lab):
    assert losses(lab.runs / "own-stopped") == losses(lab.runs / "own")
    assert num_different(lab.runs / "own-stopped", lab.runs / "own") == 0
    assert Artifact.open(lab.runs / "own-stopped").content_hash == Artifact.open(lab.runs / "own").content_hash


def test_a_branch_killed_after_a_save_goes_on_as_itself(lab):
    """kill -9 of the whole launch, with two processes; its trunk has no part in what follows."""
    settings = lab.config("own").model_dump(mode="json") | {
        "output": str(lab.runs / "killed"), "checkpoint": {"interval_tokens": ITERATION_TOKENS}}
    launcher = Launcher(lab.folder)
    process = launcher.start(settings, 2)
    latest = lab.runs / "killed" / "checkpoints" / "latest"
    deadline = time.monotonic() + 120
    while not latest.exists() and time.monotonic() < deadline:
        time.sleep(0.002)
    process.kill()
    process.communicate(timeout=60)
    assert not (lab.runs / "killed" / "manifest.json").exists()
    assert "resumed after iteration" in launcher.run(settings, 2)
    assert losses(lab.runs / "killed") == losses(lab.runs / "own")
    assert num_different(lab.runs / "killed", lab.runs / "own") == 0
    assert lab.exposure("killed") == lab.exposure("own")


def test_without_the_optimizer_the_weights_go_on_and_the_moments_begin(lab):
    """The first loss is that of the trunk's weights; the count of updates begins."""
    assert losses(lab.runs / "weights")[0] == losses(lab.runs / "fp32")[LEAVES_AT]
    assert losses(lab.runs / "weights")[1:] != losses(lab.runs / "fp32")[LEAVES_AT + 1:]
    assert losses(lab.runs / "weights-bf16")[0] == losses(lab.runs / "bf16")[LEAVES_AT]
    assert [row["lr"] for row in events(lab.runs / "weights", "train")] == [
        row["lr"] for row in events(lab.runs / "fp32", "train")][LEAVES_AT:]


def test_the_chain_leads_through_the_trunk_to_its_sources(lab):
    result = verify(Artifact.open(lab.runs / "second"), Places([lab.folder]))
    assert result.problems == []
    kinds = [(step.used_as, step.artifact.path.name) for step in result.steps]
    assert ("run > trunk", "iter_0000012") in kinds
    assert ("run > trunk > trunk", f"iter_{LEAVES_AT:07d}") in kinds


def test_the_trunk_keeps_what_branches_rest_on(lab):
    assert is_kept(lab.runs / "own" / "checkpoints" / "iter_0000012")
    assert saved_tensors(lab.runs / "fp32" / "checkpoints" / f"iter_{LEAVES_AT:07d}")


@pytest.mark.parametrize("kind", EXTENDED)
def test_an_extended_run_equals_one_that_had_the_larger_budget_from_the_start(lab, kind):
    extended, long = lab.runs / f"extended-{kind}", lab.runs / f"long-{kind}"
    assert losses(extended) == losses(long)
    assert Artifact.open(extended).content_hash == Artifact.open(long).content_hash
    assert Artifact.open(extended).counts["changes"] == [
        {"iteration": 7 if kind == "constant" else 1, "key": "train.budget_tokens", "before": 7 * ITERATION_TOKENS,
         "now": 10 * ITERATION_TOKENS}]


def test_checkpoints_of_a_run_and_of_its_branch_are_merged(lab, tmp_path):
    """Saved with their optimizers, one under pp 2; the result holds the mean of the weights alone."""
    parents = [lab.runs / "fp32" / "checkpoints" / f"iter_{ITERATIONS:07d}",
               lab.runs / "branch-pp2" / "checkpoints" / f"iter_{ITERATIONS:07d}",
               lab.runs / "fp32" / "checkpoints" / f"iter_{LEAVES_AT:07d}"]
    merged = merge_checkpoints(MergeSettings(checkpoints=parents), tmp_path / "merged")
    saved = [saved_tensors(parent) for parent in parents]
    found = saved_tensors(merged.path)
    assert found.keys() == {name for name in saved[0] if not name.startswith("optimizer.")}
    for name, tensor in found.items():
        expected = sum(one[name].double() for one in saved) / 3
        assert tensor.equal(expected.float()), name
    assert merged.counts["iterations"] == [ITERATIONS, ITERATIONS, LEAVES_AT]
    assert verify(merged, Places([lab.folder, tmp_path])).problems == []
