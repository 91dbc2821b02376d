"""The judge as a part of a study: its nodes, its plan, its place in the report."""

import json
from pathlib import Path

import pytest

from evaluation.report.judge import judged_section
from evaluation.report.page import gather, render
from evaluation.report.record import StudyRecord
from megatron_ext.artifacts import produce, write_json
from megatron_ext.data.rewriting.judge.answers import Judgement
from megatron_ext.data.rewriting.judge.pairs import Pair, Sample
from megatron_ext.data.rewriting.judge.summary import summarize
from megatron_ext.errors import UserError
from megatron_ext.study.cost import Forecast
from megatron_ext.study.graph import build_graph
from megatron_ext.study.jobs import plan_jobs
from megatron_ext.study.plan import PlannedStudy
from megatron_ext.study.report_input import write_study_record
from megatron_ext.study.site import THIS_MACHINE
from tests.unit.simulated_study import write_study
from tests.unit.test_report import Page
from tests.unit.test_study import by_name, load, study_values  # noqa: F401
from tools import run_study

QUICKSTART = Path("examples/quickstart/study.yaml")


@pytest.fixture(autouse=True)
def without_network(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


# Nodes.

def test_a_study_without_a_judge_has_no_node_of_it_and_one_with_it_changes_nothing_else(load, study_values):  # noqa: F811
    without = by_name(build_graph(load(study_values)))
    with_it = by_name(build_graph(load(study_values, "judge.model=some/judge", "judge.settings.sample=50")))
    assert with_it.keys() - without.keys() == {"judge/high", "model/judge"}
    assert all(with_it[name].identity == node.identity for name, node in without.items())
    judge = with_it["judge/high"]
    assert judge.inputs == {"rewrites": with_it["rewrite/high"], "model": with_it["model/judge"]}
    assert judge.deciding["sample"] == 50 and "max_failed_fraction" not in judge.deciding
    assert not any(judge in node.parents for node in with_it.values())  # nothing waits for it


def test_the_rewrites_of_every_rewriter_are_judged(load, study_values):  # noqa: F811
    study_values["more_rewriters"] = {"by_small": {"model": "some/small", "subsets": ["high", "low"]}}
    nodes = by_name(build_graph(load(study_values, "judge={settings: {engine: openai}}")))
    judges = {name: node for name, node in nodes.items() if node.stage == "judge"}
    assert set(judges) == {"judge/high", "judge/high_by_small", "judge/low_by_small"}
    assert all(node.inputs == {"rewrites": nodes[name.replace("judge", "rewrite", 1)]} for name, node in judges.items())


def test_one_model_is_fetched_once_whatever_it_is_used_for(load, study_values, tmp_path):  # noqa: F811
    study_values["more_rewriters"] = {"again": {"model": "some/instruct", "subsets": ["low"],
                                                "settings": {"styles": ["qa"]}}}
    nodes = build_graph(load(study_values, "judge.model=some/instruct"))
    names = by_name(nodes)
    for name in ("rewrite/high", "rewrite/low_again", "judge/high", "judge/low_again"):
        assert names[name].inputs["model"] is names["model/rewriter"]
    places = {node.output(tmp_path) for node in nodes}
    assert all(parent.output(tmp_path) in places for node in nodes for parent in node.parents)


@pytest.mark.parametrize("overrides, told", [
    (["judge.settings.sample=0"], "judge.settings.sample = 0"),
    (["judge.settings.samples=3"], "did you mean 'sample'"),
    (["judge.settings.rewrites=x"], "judge.settings.rewrites is set by"),
    (["judge.settings.language=xx"], "language = 'xx': there are"),
    (["judge.settings.labelled_file=/nowhere.jsonl"], "/nowhere.jsonl: no such file"),
    (["judge.settings={engine: openai, openai: {base_url: localhost}}"], "http://"),
    (["judge.model=null"], "name an instruct model; engine openai alone needs none"),
    (["judge.model=no model"], "no such folder"),
    (["rewriter=null", "conditions.high_with_rewrites={sources: {high: {epochs: 0.5}, low: {fill: true}}}"],
     "judge: nothing is rewritten")])
def test_a_mistake_is_told_before_anything_runs(overrides, told, tmp_path, capsys):
    code = run_study.main([str(QUICKSTART), "--work", str(tmp_path / "work"), "judge.model=smollm2-135m-instruct",
                           *overrides, "--dry-run"])
    text = "".join(capsys.readouterr())
    assert code == 2
    assert told in text and "Traceback" not in text
    assert not (tmp_path / "work").exists()


def test_the_plan_shows_the_judge_with_its_cost(tmp_path, capsys):
    code = run_study.main([str(QUICKSTART), "--work", str(tmp_path / "work"), "judge.model=smollm2-135m-instruct",
                           "judge.settings={sample: 5, max_new_tokens: 100}", "--dry-run"])
    told = capsys.readouterr().out
    assert code == 0
    assert "judge/high " in told and "judge/low " in told
    assert "(5 pairs x 4 styles + 64) x at most 100 tokens = 8,400" in told


def test_an_endpoint_costs_no_device(load, study_values, tmp_path):  # noqa: F811
    study = load(study_values, "judge={settings: {engine: openai}}")
    cost = Forecast(study.cost, tmp_path).cost(by_name(build_graph(study))["judge/high"])
    assert cost.gpu_hours == 0 and cost.arithmetic.endswith("at an endpoint")


def test_it_is_a_job_like_the_others_and_the_page_waits_for_it(load, study_values, tmp_path):  # noqa: F811
    study = load(study_values, "judge.model=some/judge", "jobs.judge.gpus=0")
    nodes = build_graph(study)
    jobs = {job.name: job for job in plan_jobs([PlannedStudy(study, nodes)], tmp_path, THIS_MACHINE)}
    assert (Path("slurm") / jobs["judge/high"].script).exists()
    assert jobs["judge/high"].after == (by_name(nodes)["rewrite/high"].identity,)
    assert by_name(nodes)["judge/high"].identity in jobs["report/tiny"].whatever


def test_the_record_names_what_was_judged(load, study_values, tmp_path):  # noqa: F811
    study = load(study_values, "judge.model=some/judge")
    nodes = build_graph(study)
    record = json.loads(write_study_record(study, nodes, tmp_path).read_text())
    assert record["judged"] == {"high": str(by_name(nodes)["judge/high"].output(tmp_path).relative_to(tmp_path))}


# The report.

FAITHFUL, UNFAITHFUL = Judgement(), Judgement((), {"unsupported": ("x",), "missing": (), "contradicted": ()})
SILENT = Judgement(("not_json",))


def said(faithful):
    none = dict.fromkeys(("unsupported", "missing", "contradicted"), ())
    return Judgement((), none) if faithful else UNFAITHFUL


def summary(unfaithful, *, wrong_of_good=1, wrong_of_bad=3, silent=0, judges_itself=False):
    """Of a judge: style -> how many of 100 it calls unfaithful; of so many more it says nothing."""
    samples, judged, labelled = {}, {}, []
    for style, count in unfaithful.items():
        pairs = [Pair("d", number, style, "a", "b") for number in range(100 + silent)]
        samples[style] = Sample(5_000, pairs)
        judged |= {pair: SILENT if pair.chunk >= 100 else said(pair.chunk >= count) for pair in pairs}
    for label, wrong in (("good", wrong_of_good), ("bad", wrong_of_bad)):
        pairs = [Pair("", number, "qa", "a", "b", label, label) for number in range(32)]
        labelled += pairs
        judged |= {pair: said((pair.chunk >= wrong) == (label == "good")) for pair in pairs}
    return summarize(samples, labelled, judged) | {"judges_itself": judges_itself}


def record_with(folder, values):
    """A record of a study in which `high` was judged."""
    def make(partial):
        write_json(partial / "summary.json", values)
        return {}

    produce(folder / "judged", kind="judged_rewrites", settings={}, inputs={}, make=make)
    return StudyRecord(folder / "study.json", {"name": "x", "judged": {"high": "judged"}, "settings": {
        "judge": {"model": str(folder / "a-judge"), "settings": {}}}})


def caveats(folder, *arguments, **options):
    return judged_section(record_with(folder, summary(*arguments, **options)))["caveats"]


def test_a_notable_share_is_a_caveat_with_the_judges_own_rates(tmp_path):
    [caveat] = caveats(tmp_path, {"easy": 4, "qa": 30})
    assert "“qa” 30.0 % (95 % interval 21.9 to 39.6, n = 100)" in caveat and "easy" not in caveat
    assert "calls 3.1 % (95 % interval" in caveat and "of bad ones 9.4 %" in caveat


@pytest.mark.parametrize("options, told", [
    ({}, []), ({"wrong_of_bad": 32}, ["cannot tell good rewrites from bad ones"]),
    ({"silent": 60}, ["“qa” 60 of 160"]), ({"judges_itself": True}, ["the model that wrote the rewrites"]),
    ({"wrong_of_good": 8, "wrong_of_bad": 0}, [])])
def test_what_else_a_reader_must_know(tmp_path, options, told):
    found = caveats(tmp_path, {"qa": 5}, **options)
    assert len(found) == len(told)
    assert all(words in caveat for words, caveat in zip(told, found, strict=True))


def test_a_share_that_the_judge_gives_good_rewrites_too_is_not_notable(tmp_path):
    assert caveats(tmp_path, {"qa": 30}, wrong_of_good=8, wrong_of_bad=2) == []


def test_nothing_judged_is_nothing_shown_and_said_where_it_was_to_be(tmp_path):
    assert judged_section(StudyRecord(Path("study.json"), {"name": "x"})) is None
    record = record_with(tmp_path, summary({"qa": 5}))
    record.values["judged"]["low"] = "nowhere"
    assert len(judged_section(record)["subsets"]) == 1
    assert record.missing == ["The judge of low has not run."]


def test_the_page_shows_shares_and_the_judges_false_rates_beside_acceptance(tmp_path):
    write_study(tmp_path, seeds=(0,), num_items=20)
    values = json.loads((tmp_path / "study.json").read_text())
    judged = record_with(tmp_path, summary({"easy": 2, "qa": 30}, silent=3)).values
    write_json(tmp_path / "study.json", values | {"judged": judged["judged"],
                                                  "settings": values["settings"] | judged["settings"]})
    record = StudyRecord.read(tmp_path / "study.json")
    assert "judged/high" in record.inputs()
    numbers = gather(record)
    assert any("“qa” 30.0 %" in note for note in numbers["notes"])
    text = Page(render(numbers)).text
    assert "A judge's view, by a-judge" in text
    assert "30.0 % 21.9 to 39.6" in text and "of 5,000 accepted" in text
    assert "of good rewrites says unfaithful 3.1 %" in text and "of bad rewrites says faithful 9.4 %" in text
    assert "not json 3" in text
    assert "A judge's view" not in Page(render(gather(StudyRecord(record.path, values)))).text


def test_a_judge_without_rewrites_is_no_users_study(load, study_values):  # noqa: F811
    del study_values["rewriter"], study_values["conditions"]["high"]["sources"]["high_rewrites"]
    with pytest.raises(UserError, match="judge: nothing is rewritten"):
        load(study_values, "judge.model=some/judge")
