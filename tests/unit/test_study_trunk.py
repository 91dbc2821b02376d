"""A study whose conditions leave one trunk: graph, contract, cost, and what the report must say."""

import json

import pytest

from megatron_ext.config import RunConfig
from megatron_ext.errors import UserError
from megatron_ext.settings import validate
from megatron_ext.study.config import planned_run, planned_trunk
from megatron_ext.study.graph import build_graph
from megatron_ext.study.jobs import plan_jobs
from megatron_ext.study.nodes import Inside
from megatron_ext.study.overview import describe_cost
from megatron_ext.study.plan import plan_studies
from megatron_ext.study.report_input import write_study_record
from megatron_ext.study.site import read_site
from megatron_ext.study.status import job_states
from tests.unit.small_study import ITERATION, by_name, study_loader


@pytest.fixture
def load(tmp_path):
    return study_loader(tmp_path, run={"schedule": {"warmup_fraction": 0.1}}, trunk={
        "tokens": 15 * ITERATION, "sources": {"low": {"fraction": 0.5}, "high": {"fill": True}}})


def test_every_condition_leaves_the_same_checkpoint_of_one_run(load):
    nodes = by_name(load("seeds=[0, 1]"))
    first, *others = [name for name in nodes if name.startswith("run/")]
    assert first == "run/trunk/seed0"
    assert sorted(others) == ["run/high/seed0", "run/high/seed1", "run/low/seed0", "run/low/seed1"]
    trunk = nodes["run/trunk/seed0"]
    for name, node in nodes.items():
        if name.startswith("run/") and node is not trunk:
            assert node.inputs["start.checkpoint"] == Inside(trunk, "checkpoints/iter_0000015")
            assert trunk in node.parents
    assert not any(name.startswith(("export/trunk", "evaluate/trunk")) for name in nodes)


def test_another_trunk_makes_other_branches(load):
    before, after = by_name(load()), by_name(load("trunk.seed=1"))
    assert before["run/low/seed0"].identity != after["run/low/seed0"].identity
    without = by_name(load(trunk=None))
    assert without["run/low/seed0"].identity != before["run/low/seed0"].identity
    assert without["run/low/seed0"].deciding.get("start") is None


def test_the_trunk_trains_at_the_learning_rate_that_its_branches_had_there(load):
    trunk, branch = planned_trunk(load()), planned_run(load(), "low", 0)
    assert trunk.warmup_samples == branch.warmup_samples == 4
    assert (trunk.decay_start, branch.decay_start) == (float("inf"), 32)
    assert trunk.optimizer == branch.optimizer
    assert (trunk.train_iters, branch.train_iters) == (15, 20)


def test_the_configurations_that_the_programs_get_are_whole(load, tmp_path):
    nodes = by_name(load())
    for name in ("run/trunk/seed0", "run/low/seed0"):
        config = validate(RunConfig, nodes[name].config(tmp_path) | {"output": "."}, name)
        assert (config.start is None) == (name == "run/trunk/seed0")
    assert config.start.checkpoint == nodes["run/trunk/seed0"].output(tmp_path) / "checkpoints" / "iter_0000015"


def test_checkpoints_of_the_trunks_part_are_not_evaluated(load):
    nodes = by_name(load("evaluation.checkpoints=all"))
    assert sorted(name for name in nodes if name.startswith("evaluate/low")) == [
        "evaluate/low/seed0", "evaluate/low/seed0/iter_0000016"]


@pytest.mark.parametrize(("overrides", "told"), [
    (["trunk.tokens=2560"], "tokens 2,560 leave nothing of train.budget_tokens 2,560 to 'low'"),
    (["run.schedule.decay_iters=6"], "begins after 1,792 tokens, before the trunk is left at 1,920"),
    (["run.schedule.decay_iters=null", "run.schedule.style=cosine"], "the cosine decay of 'low' begins after 256"),
    (["trunk.sources.hgih.epochs=1"], "trunk.sources: 'hgih' is no source"),
    (["run.start.checkpoint=somewhere"], "run.start: a study's runs leave a trunk of its own"),
    (["conditions.low.overrides={start.optimizer: false}"], "start.optimizer = False differs from the other"),
    (["conditions.trunk.sources.low.epochs=1"], "conditions: 'trunk' names the run that they leave"),
])
def test_what_cannot_be_a_trunk_is_refused(load, overrides, told):
    with pytest.raises(UserError) as refusal:
        load(*overrides)
    assert told in str(refusal.value)


def test_the_plan_tells_what_the_trunk_costs_once_and_each_branch(load, tmp_path):
    studies = plan_studies([load("seeds=[0, 1]")])
    jobs = plan_jobs(studies, tmp_path, read_site())
    lines = list(describe_cost(studies, jobs, job_states(jobs, tmp_path, {}), tmp_path))
    [line] = [line for line in lines if line.startswith("trunk: ")]
    assert "GPU-hours once, 4 branches" in line
    runs = [line for line in lines if "TFLOP/s; " in line]
    assert sum("1,920 tokens" in line for line in runs) == 1
    assert sum("640 tokens" in line for line in runs) == 4
    assert any("high 640 (0.18 epochs)" in line for line in lines)  # 960 tokens of the trunk's of 9,000


def test_the_text_that_the_trunk_has_seen_counts_as_trained_on(load):
    assert load().trained_on("low") == ["low", "high"]
    assert load(trunk=None).trained_on("low") == ["low"]


def test_the_report_says_that_branches_are_not_independent(load, tmp_path):
    for trunk, expected in ((load().trunk.model_dump(mode="json"), 1), (None, 0)):
        study = load(trunk=trunk, name=f"study-{expected}")
        record = json.loads(write_study_record(study, build_graph(study), tmp_path / "work").read_text())
        assert sum("not independent runs" in note for note in record["notes"]) == expected
