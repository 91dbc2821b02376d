"""Suites in a study: its graph and plan, its items in training text, and conditions side by side with PoETa V2."""

import json
import sys
from pathlib import Path

import pytest

pytest.importorskip("lm_eval")
from evaluation.compare import CompareSettings, compare
from evaluation.compare_suites import COMPARISON, CompareSuitesSettings, compare_suites, main
from evaluation.poeta.run import PoetaSettings, evaluate_model
from evaluation.suites.items import ITEMS, SuiteItemsSettings, write_suite_items
from megatron_ext.data.selection.overlap import OverlapSettings, find_overlap
from megatron_ext.errors import UserError
from megatron_ext.study.jobs import plan_jobs
from megatron_ext.study.plan import examine, load_studies
from megatron_ext.study.registration import register
from megatron_ext.study.site import read_site
from tests.suite_tasks import write_suite_tasks
from tests.tiny_model import write_tiny_model
from tests.unit.small_study import by_name, study_loader
from tests.unit.test_overlap import write_documents

POETA = "tweetsentbr_greedy"


@pytest.fixture
def load(tmp_path):
    write_suite_tasks(tmp_path / "my_tasks")
    return study_loader(tmp_path)


def suites(**more):
    return {"evaluation": {"baseline": "low", "suites": {
        "mine": {"tasks": ["cores", "prosa"], "include_path": "my_tasks", "limit": 5}, **more}}}


def test_without_suites_every_stage_keeps_its_name(load):
    plain, empty = by_name(load()), by_name(load(evaluation={"baseline": "low", "suites": {}}))
    assert {name: node.identity for name, node in plain.items()} == {
        name: node.identity for name, node in empty.items()}
    assert not any("suite" in name for name in plain)
    assert "suites" not in plain["evaluate/base"].config(Path("work"))


def test_every_model_is_evaluated_and_conditions_are_compared(load):
    nodes, plain = by_name(load(**suites())), by_name(load())
    assert nodes.keys() - plain.keys() == {"overlap/items-mine", "overlap/suites", "compare/suites"}
    for name in ("evaluate/base", "evaluate/low/seed0", "evaluate/high/seed0"):
        assert nodes[name].config(Path("work"))["suites"]["mine"]["include_path"].endswith("my_tasks")
    compared = nodes["compare/suites"]
    assert [one.name for one in compared.inputs["evaluations.high"]] == ["evaluate/high/seed0"]
    assert compared.inputs["overlap"] is nodes["overlap/suites"]
    assert {key for key in nodes["overlap/suites"].inputs if key.startswith("training.")} == {
        "training.low", "training.high"}
    for name in plain.keys() - {"evaluate/base", "evaluate/low/seed0", "evaluate/high/seed0", "compare/conditions"}:
        assert plain[name].identity == nodes[name].identity


def test_another_item_is_another_evaluation(load, tmp_path):
    before = by_name(load(**suites()))
    path = tmp_path / "my_tasks" / "cores.jsonl"
    path.write_text(path.read_text().replace("bandeira", "vela"))
    after = by_name(load(**suites()))
    for name in ("evaluate/base", "overlap/items-mine", "compare/suites"):
        assert before[name].identity != after[name].identity
    assert before["run/low/seed0"].identity == after["run/low/seed0"].identity


@pytest.mark.parametrize(("values", "told"), [
    ({"include_path": "my_tasks", "tasks": ["cores", "cores"]},
     "evaluation.suites.bad.tasks = ['cores', 'cores']: cores is there twice; remove one"),
    ({"include_path": "my_tasks", "limit": 0}, "evaluation.suites.bad.limit = 0: Input should be greater than"),
    ({"include_path": "my_tasks", "limits": 3}, "did you mean"),
    ({"limit": 3}, "names no tasks; write tasks, or include_path for all tasks of a folder"),
])
def test_mistakes_in_the_file(load, values, told):
    with pytest.raises(UserError) as error:
        load(**suites(bad=values))
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def problems(load, tmp_path, **sections):
    load(**sections)
    return examine(load_studies([tmp_path / "study.yaml"], []), tmp_path / "work").problems


def test_mistakes_that_a_plan_tells(load, tmp_path):
    (tmp_path / "empty").mkdir()
    told = problems(load, tmp_path, **suites(
        twice={"include_path": "my_tasks", "tasks": ["tudo_meu", "somas"]},
        far={"include_path": "nowhere"}, empty={"include_path": "empty"},
        metric={"include_path": "my_tasks", "tasks": ["cores"], "metric": "f1"}))
    assert sorted(told) == [
        f"tiny: evaluation.suites.empty.include_path = {tmp_path / 'empty'}: no YAML file in it is a task of "
        "lm-evaluation-harness",
        "tiny: evaluation.suites.far.include_path = nowhere: nothing is there",
        "tiny: evaluation.suites.metric.metric = f1: task cores has no such metric (acc, acc_norm)",
        "tiny: evaluation.suites.twice.tasks = somas: somas is asked for twice; name the group or the task, not both"]
    assert problems(load, tmp_path, **suites()) == []


def test_the_primary_outcome_may_be_a_suite(load):
    nodes = by_name(load("evaluation.primary=mine", **suites()))
    assert nodes["compare/suites"].settings["primary"] == "mine"
    assert "primary" not in nodes["compare/conditions"].settings
    assert nodes["compare/held_out"].settings["primary"] is None
    with pytest.raises(UserError, match=r"evaluation\.suites\.low: names another outcome, too"):
        load(**suites(low={"include_path": "my_tasks"}))


def test_what_suites_ask_is_registered_without_places(load, tmp_path):
    plain = register(load(), tmp_path / "plain")
    assert "suites" not in plain["question"]["evaluation"]
    asked = register(load(**suites()), tmp_path / "work")["question"]["evaluation"]["suites"]
    assert asked["mine"]["tasks"] == ["cores", "prosa"] and "include_path" not in asked["mine"]


def test_a_run_refuses_suites_of_another_backend(load):
    with pytest.raises(UserError, match="write backend=hf, or leave the suites out"):
        by_name(load("evaluation.settings={backend: vllm}", **suites()))


def test_the_job_that_writes_items_is_told_its_program(load, tmp_path):
    load(**suites())
    jobs = {job.name: job for job in plan_jobs(load_studies([tmp_path / "study.yaml"], []), tmp_path, read_site())}
    items, overlap = jobs["overlap/items-mine"], jobs["overlap/suites"]
    assert (items.script, items.environment["PROGRAM"]) == ("overlap.sbatch", "tools.suite_items")
    assert "PROGRAM" not in overlap.environment and items.key in overlap.after


@pytest.fixture
def items(tmp_path):
    tasks = write_suite_tasks(tmp_path / "tasks", num_items=24)
    suite = {"tasks": ["prosa", "cores"], "include_path": str(tasks), "limit": 20}
    return write_suite_items(SuiteItemsSettings(suites={"mine": suite}), tmp_path / "items")


def test_the_items_are_questions_with_their_right_answers(items):
    rows = [json.loads(line) for line in (items.path / ITEMS).read_text().splitlines()]
    assert items.counts["items"] == {"mine/prosa": 20, "mine/cores": 20}
    assert [row["text"] for row in rows if row["task"] == "mine/cores"][:2] == [
        "0 tem 0 azul", "1 tem 1 amarelo"]  # the words that all questions share are no evidence
    assert rows[0] == {"task": "mine/prosa", "id": "mine/prosa/0", "text": "No ano 1900, a vila tinha 0 casas."}


def test_items_that_rewrites_hold_are_found(items, tmp_path):
    rows = [json.loads(line) for line in (items.path / ITEMS).read_text().splitlines()]
    planted = [row for row in rows if row["task"] == "mine/prosa"]
    documents = [(f"d{number}/easy", f"d{number}", "easy", f"Conta-se isto: {row['text'].upper()} E nada mais.")
                 for number, row in enumerate(planted)]
    rewrites = write_documents(tmp_path / "rewrites", documents, kind="rewrites")
    clean = write_documents(tmp_path / "clean", [("c", "c", "original", "Nada disto está aqui. " * 20)])
    overlap = find_overlap(OverlapSettings(training={"rewrites": rewrites, "clean": clean}, short_ngram=8,
                                           neutral={"mine": items.path}), tmp_path / "overlap")
    told = json.loads((overlap.path / "overlap.json").read_text())["mine"]
    assert (told["documents"], told["training"]["rewrites"]["shares_words"]) == (40, 20)
    assert told["training"]["clean"] == {"shares_words": 0, "near_duplicates": 0}
    assert told["too_short"] == 20  # colours


def test_two_models_side_by_side_on_poeta_and_suites(tmp_path, monkeypatch, items, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("POETA_DATA", raising=False)
    evaluations = {}
    for name, spread in (("low", 0.5), ("high", 0.3)):
        model = write_tiny_model(tmp_path / name, initializer_range=spread)
        evaluations[name] = [evaluate_model(PoetaSettings(
            model=str(model), tasks=[POETA], limit=4, max_gen_toks=4, device="cpu", allow_sample_data=True,
            allow_download=False, suites={"mine": {"include_path": str(tmp_path / "tasks"), "limit": 6}}),
            tmp_path / f"scores-{name}").path]
    places = json.dumps({name: [str(one) for one in some] for name, some in evaluations.items()})
    monkeypatch.setattr(sys, "argv", ["compare_suites", "--output", str(tmp_path / "suites"), "baseline=low",
                                      "num_resamples=200", f"evaluations={places}"])
    main()
    told = capsys.readouterr().out
    assert "Suite “mine”: " in told and "note: Whether training text holds items" in told
    comparison = json.loads((tmp_path / "suites" / COMPARISON).read_text())
    assert {(part["measure"]["unit"], *(task["name"] for task in part["tasks"])) for part in comparison["suites"]} == {
        ("points of acc", "contas", "cores"), ("bits a byte", "prosa"), ("points of exact_match", "somas")}
    poeta = compare(CompareSettings(evaluations=evaluations, baseline="low", num_resamples=200), tmp_path / "poeta")
    assert [one["name"] for one in json.loads((poeta.path / "comparison.json").read_text())["tasks"]] == [POETA]
    again = compare_suites(CompareSuitesSettings(evaluations=evaluations, baseline="low", num_resamples=200),
                           tmp_path / "again")
    assert json.loads((again.path / COMPARISON).read_text()) == comparison
