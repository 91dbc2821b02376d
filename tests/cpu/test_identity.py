"""What a run is: equal requests give equal content; going back, skipping and changes on the way leave their mark."""

import json

import pytest

from megatron_ext.artifacts import ASIDE, Artifact
from tests.cpu.launch import run_distributed
from tests.cpu.test_grid import ITERATIONS, PP2, SP, TP2, VPP2, num_different, settings
from tests.cpu.test_training import events, losses

pytestmark = pytest.mark.slow
ITERATION_TOKENS = 8 * 32
SKIPPED = {"train": {"skip_iterations": [[6, 7]]}}
BACK = {"resume_from": "iter_0000004"}
VARIANTS = {
    "twin": {}, "twin-again": {}, "asynchronous": {"checkpoint": {"asynchronous": True}},
    "asynchronous-again": {"checkpoint": {"asynchronous": True}},
    "bf16": {"model": {"dtype": "bfloat16"}}, "bf16-again": {"model": {"dtype": "bfloat16"}},
    "back": {}, "back#again": BACK, "back#once more": BACK,
    "skipping": SKIPPED, "back-and-skipping": {}, "back-and-skipping#again": BACK | SKIPPED,
    "kept": {"train": {"exit_duration_minutes": 1e-9}, "checkpoint": {"keep_tokens": [ITERATION_TOKENS]}},
    "kept#again": {"checkpoint": {"keep_tokens": [], "keep_last": 1, "interval_tokens": ITERATION_TOKENS}},
    "changed": {"train": {"exit_duration_minutes": 1e-9}}, "changed#again": {"guard": {"spike_factor": 100.0}},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("identity")
    base = settings(folder)
    base["checkpoint"] = {"interval_tokens": 2 * ITERATION_TOKENS, "keep_last": 2,
                          "keep_tokens": [4 * ITERATION_TOKENS]}
    validation = base.pop("validation")
    run_distributed("tests.cpu.cases_training:runs", 2, base=base,
                    variants=VARIANTS | {"validated": {"validation": validation}})
    return folder / "runs"


def content(run):
    return Artifact.open(run, kind="run").content_hash


@pytest.mark.parametrize("name", ["twin", "asynchronous", "bf16"])
def test_two_undisturbed_runs_have_the_same_content(runs, name):
    assert content(runs / name) == content(runs / f"{name}-again")
    for checkpoint in sorted((runs / name / "checkpoints").glob("iter_???????")):
        other = runs / f"{name}-again" / "checkpoints" / checkpoint.name
        assert Artifact.open(checkpoint).content_hash == Artifact.open(other).content_hash
    assert (runs / name / "metrics.jsonl").read_bytes() != (runs / f"{name}-again" / "metrics.jsonl").read_bytes()


def test_a_run_that_went_back_ends_with_the_bits_of_one_that_did_not(runs):
    assert losses(runs / "back") == losses(runs / "twin")
    assert content(runs / "back") == content(runs / "twin")
    assert sorted(path.name for path in (runs / "back" / "checkpoints" / ASIDE).iterdir()) == [
        "iter_0000008", "iter_0000010"]
    dropped = [json.loads(line) for line in (runs / "back" / "metrics-dropped.jsonl").read_text().splitlines()]
    assert [row["iteration"] for row in dropped] == list(range(5, ITERATIONS + 1))
    assert len(json.loads((runs / "back" / "launches.json").read_text())) == 2


def test_kept_checkpoints_are_there_in_the_end(runs):
    kept = sorted(path.name for path in (runs / "twin" / "checkpoints").glob("iter_???????"))
    assert kept == ["iter_0000004", "iter_0000008", "iter_0000010"]


def test_a_kept_checkpoint_stays_though_the_next_launch_does_not_ask_for_it(runs):
    left = sorted(path.name for path in (runs / "kept" / "checkpoints").glob("iter_???????"))
    assert left == ["iter_0000001", "iter_0000010"]


def test_skipped_iterations_change_the_ledger_and_the_schedule_goes_on(runs):
    skipping, twin = runs / "skipping", runs / "twin"
    assert [row["iteration"] for row in events(skipping, "passed_over")] == [6, 7]
    trained = {row["iteration"]: row for row in events(skipping, "train")}
    assert sorted(trained) == [1, 2, 3, 4, 5, 8, 9, 10]
    for row in events(twin, "train"):
        if row["iteration"] in trained:
            assert trained[row["iteration"]]["lr"] == row["lr"]
    assert losses(skipping)[:5] == losses(twin)[:5]
    whole, ledger = (json.loads((run / "exposure.json").read_text()) for run in (twin, skipping))
    assert ledger["skipped_iterations"] == [[6, 7]]
    samples = {name: sum(source["samples"] for source in one["sources"].values())
               for name, one in (("whole", whole), ("ledger", ledger))}
    assert samples == {"whole": 80, "ledger": 64}
    for name, source in ledger["sources"].items():
        assert source["seen_tokens"] + source["passed_over_tokens"] == whole["sources"][name]["seen_tokens"]


def test_skipping_after_going_back_is_skipping_from_the_start(runs):
    assert losses(runs / "back-and-skipping") == losses(runs / "skipping")
    assert num_different(runs / "back-and-skipping", runs / "skipping") == 0
    assert Artifact.open(runs / "back-and-skipping").settings == Artifact.open(runs / "skipping").settings


def test_a_change_on_the_way_is_in_the_runs_and_the_checkpoints_manifest(runs):
    changes = [{"iteration": 1, "key": "guard.spike_factor", "before": None, "now": 100.0}]
    run = Artifact.open(runs / "changed", kind="run")
    assert run.counts["changes"] == changes
    assert Artifact.open(run.path / run.counts["checkpoint"]).counts["changes"] == changes
    assert Artifact.open(runs / "twin").counts["changes"] == []


@pytest.mark.parametrize("layout", [{}, TP2 | SP, PP2 | VPP2], ids=["dp2", "tp2_sp", "pp2_vpp2"])
def test_the_stage_of_its_own_measures_what_training_measured(runs, tmp_path, layout):
    """Of the base model and of a checkpoint, under any layout."""
    folder = runs.parent
    common = {"sources": {name: str(folder / name) for name in "ab"}, "seq_length": 32, "dtype": "float32",
              "micro_batch_size": 2, "parallel": layout}
    checkpoint = runs / "validated" / "checkpoints" / "iter_0000010"
    variants = {0: {**common, "model": str(folder / "model"), "output": str(tmp_path / "0")},
                ITERATIONS: {**common, "checkpoint": str(checkpoint), "output": str(tmp_path / str(ITERATIONS))}}
    run_distributed("tests.cpu.cases_training:held_out", 2, variants=variants)
    for row in events(runs / "validated", "validation"):
        measured = json.loads((tmp_path / str(row["iteration"]) / "losses.json").read_text())
        assert measured.keys() == row["sources"].keys()
        for source, losses_there in row["sources"].items():
            assert measured[source] == pytest.approx(losses_there, rel=1e-5)
