"""A study that measures runs by the mean of their last checkpoints: graph, retention, plan, jobs, and what is told."""

import json
from pathlib import Path

import pytest

from megatron_ext.artifacts import publish_in_place, write_json
from megatron_ext.config import RunConfig
from megatron_ext.errors import UserError
from megatron_ext.settings import validate
from megatron_ext.study.graph import build_graph
from megatron_ext.study.jobs import plan_jobs
from megatron_ext.study.nodes import Inside
from megatron_ext.study.overview import describe_cost
from megatron_ext.study.plan import examine, plan_studies
from megatron_ext.study.registration import register
from megatron_ext.study.report_input import write_study_record
from megatron_ext.study.site import read_site
from megatron_ext.study.status import job_states
from tests.unit.small_study import ITERATION, by_name, study_loader

TRUNK = {"tokens": 15 * ITERATION, "sources": {"low": {"fill": True}}}


@pytest.fixture
def load(tmp_path):
    return study_loader(tmp_path)


def merged(nodes, name="low/seed0"):
    return [int(one.folder[-7:]) for one in nodes[f"merge/{name}"].inputs["checkpoints"]]


def test_the_mean_takes_the_place_of_the_last_checkpoint(load):
    nodes = by_name(load("seeds=[0, 1]", "evaluation.merge_last=3"))
    for name in ("low/seed0", "low/seed1", "high/seed0", "high/seed1"):
        run, merge = nodes[f"run/{name}"], nodes[f"merge/{name}"]
        assert merge.inputs == {"checkpoints": [Inside(run, f"checkpoints/iter_00000{end}") for end in (12, 16, 20)]}
        assert nodes[f"export/{name}"].inputs == {"checkpoint": merge}
        assert nodes[f"validate/{name}"].inputs["checkpoint"] is merge
        assert list(nodes).index(f"run/{name}") < list(nodes).index(merge.name) < list(nodes).index(f"export/{name}")


def test_what_is_merged_stays_and_makes_no_other_run(load):
    plain = by_name(load())
    for nodes in (by_name(load("evaluation.merge_last=1")), by_name(load("evaluation.merge_last=3"))):
        assert nodes["run/low/seed0"].identity == plain["run/low/seed0"].identity
    assert nodes["run/low/seed0"].settings["checkpoint"]["keep_tokens"] == [12 * ITERATION, 16 * ITERATION]
    assert plain["run/low/seed0"].settings["checkpoint"]["keep_tokens"] == []
    assert {name: node.identity for name, node in by_name(load("evaluation.merge_last=1")).items()} == {
        name: node.identity for name, node in plain.items()}
    assert nodes["export/low/seed0"].identity != plain["export/low/seed0"].identity
    assert nodes["evaluate/base"].identity == plain["evaluate/base"].identity


@pytest.mark.parametrize(("overrides", "expected"), [
    (["evaluation.merge_last=5"], [4, 8, 12, 16, 20]),
    (["evaluation.merge_last=2", "run.train.budget_tokens=2176"], [12, 17]),  # 16 is just before the last
    (["evaluation.merge_last=2", "run.checkpoint.keep_tokens=[2304]"], [18, 20]),
    (["evaluation.merge_last=2", "run.checkpoint.interval_tokens=null", "evaluation.checkpoints=[1280]"], [10, 20]),
    (["evaluation.merge_last=2", "run.checkpoint.keep_last=1"], [16, 20]),
])
def test_the_last_of_those_that_a_run_saves_are_merged(load, overrides, expected):
    assert merged(by_name(load(*overrides))) == expected


def test_of_a_branch_its_own_are_merged(load):
    nodes = by_name(load("evaluation.merge_last=2", trunk=TRUNK))
    assert merged(nodes) == [16, 20]
    assert nodes["run/trunk/seed0"].settings["checkpoint"]["keep_tokens"] == []


@pytest.mark.parametrize(("overrides", "changes", "told"), [
    (["evaluation.merge_last=6"], {}, "merge_last = 6, but a run of 'high' saves after iterations 4, 8, 12, 16, 20: "),
    (["evaluation.merge_last=2", "run.checkpoint.interval_tokens=null"], {}, "saves after iteration 20 alone: lower"),
    (["evaluation.merge_last=3"], {"trunk": TRUNK}, "iterations 16, 20 (those of the trunk do not count)"),
    (["evaluation.merge_last=0"], {}, "evaluation.merge_last"),
    (["evaluation.merge_last=2", "evaluation.mean_of_last=2", "evaluation.checkpoints=all"], {}, "choose one"),
])
def test_what_cannot_be_merged_is_refused_in_a_line(load, overrides, changes, told):
    with pytest.raises(UserError) as refusal:
        plan_studies([load(*overrides, **changes)])
    assert told in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_the_plan_and_slurm_know_the_merge(load, tmp_path):
    studies = plan_studies([load("seeds=[0, 1]", "evaluation.merge_last=3")])
    jobs = plan_jobs(studies, tmp_path, read_site())
    [merge] = [job for job in jobs if job.name == "merge/low/seed0"]
    assert merge.script == "merge_checkpoints.sbatch"
    assert "run_stage tools.merge_checkpoints" in (Path("slurm") / merge.script).read_text()
    assert (merge.after, merge.gpus_per_node) == ((by_name(studies[0].study)["run/low/seed0"].identity,), 0)
    lines = list(describe_cost(studies, jobs, job_states(jobs, tmp_path, {}), tmp_path))
    [line] = [line for line in lines if line.startswith("merge/low/seed0 ")]
    assert "– GPU-h" in line
    assert "200.0 GB" in line
    assert any("; 4 checkpoints x" in line for line in lines)  # two more than the last two


def test_a_run_that_studies_share_keeps_what_any_of_them_merges(load):
    studies = plan_studies([load(name="one"), load("evaluation.merge_last=3", name="two")])
    for planned in studies:
        [run] = [node for node in planned.nodes if node.name == "run/low/seed0"]
        assert run.settings["checkpoint"]["keep_tokens"] == [12 * ITERATION, 16 * ITERATION]


@pytest.mark.parametrize("is_over", [True, False])
def test_what_a_run_did_not_keep_is_told_before_anything_runs(load, tmp_path, is_over):
    """Asked for when the run has ended, or has come past it."""
    studies = plan_studies([load("evaluation.merge_last=3")])
    [run] = [node for node in studies[0].nodes if node.name == "run/low/seed0"]
    folder = run.output(tmp_path)
    for name in ("iter_0000016", "iter_0000020"):
        (folder / "checkpoints" / name).mkdir(parents=True)
        write_json(folder / "checkpoints" / name / "a.json", {})
        publish_in_place(folder / "checkpoints" / name, kind="checkpoint", settings={}, inputs={}, counts={})
    if is_over:
        publish_in_place(folder, kind="run", settings={}, inputs={}, counts={})
    [told] = [line for line in examine(studies, tmp_path).problems if "did not keep" in line]
    assert "merge/low/seed0: the run" in told
    assert "did not keep checkpoints/iter_0000012; evaluation.checkpoints and merge_last must be set before" in told
    assert not [line for line in examine(plan_studies([load("evaluation.merge_last=2")]), tmp_path).problems
                if "did not keep" in line]


def test_the_program_gets_whole_settings(load, tmp_path):
    nodes = by_name(load("evaluation.merge_last=2"))
    run = validate(RunConfig, nodes["run/low/seed0"].config(tmp_path) | {"output": "."}, "run")
    assert run.kept_iterations == {16}
    assert nodes["merge/low/seed0"].config(tmp_path) == {"checkpoints": [
        str(nodes["run/low/seed0"].output(tmp_path) / "checkpoints" / name)
        for name in ("iter_0000016", "iter_0000020")]}


def test_it_is_registered_and_told_to_the_reader(load, tmp_path):
    assert not register(load(), tmp_path)["edits"]
    assert register(load("evaluation.merge_last=3"), tmp_path)["edits"] == [
        {"key": "evaluation.merge_last", "before": None, "now": 3}]
    edits = register(load(trunk=TRUNK), tmp_path)["edits"]
    assert {one["key"].split(".")[0] for one in edits} == {"evaluation", "trunk"}
    study = load("evaluation.merge_last=3", name="merged")
    record = json.loads(write_study_record(study, build_graph(study), tmp_path / "work").read_text())
    assert sum("on the mean of the last 3 checkpoints of each run" in note for note in record["notes"]) == 1
    plain = load(name="plain")
    record = json.loads(write_study_record(plain, build_graph(plain), tmp_path / "work").read_text())
    assert not any("on the mean of the last" in note for note in record["notes"])
