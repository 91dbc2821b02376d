"""Gold answers in a comparison: declared measures, planted effects, only what was measured on both sides."""

import json
import re
from functools import partial

import numpy as np
import pytest

from evaluation.compare import CompareSettings
from evaluation.compare_gold import _by_cluster, compare_gold
from evaluation.matched import load_evaluations
from evaluation.measures import CLOZE_BITS_PER_BYTE, GOLD_BITS_PER_BYTE, LIKELIHOODS, MEASURES
from evaluation.poeta import task_names, task_spec
from evaluation.report.page import gather, render
from evaluation.report.record import StudyRecord
from megatron_ext.artifacts import write_json
from megatron_ext.errors import UserError
from megatron_ext.stage import request_settings
from tests.unit.simulated_study import TASKS, comparer, evaluator, gold_rows

WITH_TEXTS = {"enem_greedy", "logiqa_greedy"}


@pytest.fixture
def evaluate(tmp_path):
    return partial(evaluator(tmp_path), gold=0.0)


@pytest.fixture
def run(tmp_path):
    return comparer(tmp_path)


def by_name(found):
    return {one["measure"]["name"]: one for one in found["gold"]["measures"]}


def test_every_measure_of_the_task_table_is_declared():
    named = {measure for name in task_names() for measure in task_spec(name).likelihood_measures}
    assert named == {measure.name for measure in LIKELIHOODS} <= MEASURES.keys()


def test_a_planted_difference_is_claimed_in_words_of_its_measure(evaluate, run):
    found = run({"low": [evaluate("l", gold=0.0, seed=1)], "same": [evaluate("s", gold=0.0, seed=2)],
                 "high": [evaluate("h", gold=0.06, seed=3)]}, "low")
    measures = by_name(found)
    cloze = {(one["condition"], one["reference"]): one for one in measures["cloze_bits_per_byte"]["differences"]}
    high, same = cloze["high", "low"], cloze["same", "low"]
    assert high["is_claimed"] and not same["is_claimed"]
    assert high["estimate"]["value"] == pytest.approx(-0.06, abs=0.02)
    assert high["estimate"]["p"] <= high["p_corrected"] <= 1
    assert re.match(r"high is better than low: −0\.0\d\d bits a byte of right options \(fewer is better\), 95 % "
                    r"interval −0\.0\d\d to −0\.0\d\d, n = 160 items of 2 tasks, corrected p", high["verdict"])
    assert "with one training run a condition" in high["verdict"]
    assert "could have detected 0.0" in same["verdict"] and same["verdict"].startswith("No difference")
    assert "is better than" not in found["differences"][0]["verdict"]  # NPM stays what it was
    accuracy = next(one for one in measures["gold_accuracy"]["differences"] if one["condition"] == "high")
    assert "points of likeliest answers" in accuracy["verdict"]


def test_means_are_over_the_tasks_for_which_a_measure_makes_sense(evaluate, run, tmp_path):
    measures = by_name(run({"a": [evaluate("a", seed=1)], "b": [evaluate("b", gold=0.1, seed=2)]}, "a"))
    assert {task["name"] for task in measures["cloze_accuracy"]["tasks"]} == WITH_TEXTS
    assert {task["name"] for task in measures["gold_accuracy"]["tasks"]} == TASKS.keys()
    assert measures["gold_accuracy"]["chance"] == pytest.approx(100 / 3)  # of three options
    assert measures["cloze_bits_per_byte"]["chance"] is None
    assert "gold_bits_per_byte" not in measures  # letters and labels alone: a prior
    rows = [json.loads(line) for line in (tmp_path / "b" / "gold.jsonl").read_text().splitlines()]
    expected = [np.mean([row["nats"] / np.log(2) / row["bytes"] for row in rows
                         if (row["task"], row["form"]) == (task, "cloze")]) for task in WITH_TEXTS]
    value = measures["cloze_bits_per_byte"]["conditions"]["b"]["estimate"]["value"]
    assert value == pytest.approx(np.mean(expected))


def test_p_values_of_all_measures_are_corrected_together(evaluate, run):
    measures = by_name(run({"a": [evaluate("a", seed=1)], "b": [evaluate("b", gold=0.02, seed=2)]}, "a"))
    ps = sorted((one["differences"][0]["estimate"]["p"], one["differences"][0]["p_corrected"])
                for one in measures.values())
    assert len(ps) == 3
    assert ps[0][1] == pytest.approx(min(1, 3 * ps[0][0]))


def test_only_what_was_scored_is_compared(evaluate, run):
    found = run({"base": [evaluate("base", gold=None)], "a": [evaluate("a")],
                 "b": [evaluate("b", gold=0.1, seed=2)]}, "a")
    assert found["gold"]["not_scored"] == ["base"]
    assert "not scored for base: scoring=[generate, gold]" in found["gold"]["caveats"][0]
    for one in by_name(found).values():
        assert one["conditions"].keys() == {"a", "b"}
        assert [(two["condition"], two["reference"]) for two in one["differences"]] == [("b", "a")]
    assert {one["condition"] for one in found["differences"]} == {"a", "b"}


def test_a_seed_that_was_not_scored_leaves_its_condition_out(evaluate, run):
    found = run({"a": [evaluate("a0"), evaluate("a1", gold=None, seed=1)], "b": [evaluate("b", seed=2)],
                 "c": [evaluate("c", seed=3)]}, "b")
    assert found["gold"]["not_scored"] == ["a"]


def test_older_evaluations_are_compared_as_before(evaluate, run):
    assert "gold" not in run({"a": [evaluate("a", gold=None)], "b": [evaluate("b", gold=None, seed=2)]}, "a")


def test_seeds_and_interactions(evaluate, run):
    effects = {"a": 0.3, "b": 0.1, "c": 0.1, "d": 0.1}
    evaluations = {name: [evaluate(f"{name}{seed}", gold=gold, seed=10 * i + seed) for seed in range(2)]
                   for i, (name, gold) in enumerate(effects.items())}
    measures = by_name(run(evaluations, "b", interactions={"rewriting": ["a", "b", "c", "d"]}))
    [interaction] = measures["cloze_bits_per_byte"]["interactions"]
    assert interaction["is_claimed"]
    assert "is larger than that of c over d" in interaction["verdict"]
    assert len(measures["cloze_bits_per_byte"]["conditions"]["a"]["per_seed"]) == 2
    assert "one training run" not in measures["cloze_bits_per_byte"]["differences"][0]["verdict"]


def test_other_answers_are_refused(evaluate, run, tmp_path):
    a, b = evaluate("a"), evaluate("b", seed=2)
    settings = CompareSettings(evaluations={"a": [a], "b": [b]}, baseline="a", num_resamples=200)
    evaluations = load_evaluations(settings.evaluations, [])
    evaluations[1].gold["enem_greedy", "cloze"][3]["prompt_sha256"] = "another"
    with pytest.raises(UserError, match=r"task enem_greedy: the gold answers of a \(model 1\) and b \(model 1\)"):
        compare_gold(evaluations, settings)


def test_items_of_one_id_are_one_cluster():
    rows = list(gold_rows("faquad", 6, 0.0, 1, 7))[:6]
    alone = _by_cluster(GOLD_BITS_PER_BYTE, rows)
    copies = _by_cluster(GOLD_BITS_PER_BYTE, [{**row, "source_id": row["doc_id"]} for row in rows for _ in range(4)])
    assert len(alone) == 6
    assert copies == pytest.approx(alone)


def test_the_page_shows_every_measure(evaluate, run, tmp_path):
    run({"low": [evaluate("l", seed=1)], "high": [evaluate("h", gold=0.1, seed=3)]}, "low")
    write_json(tmp_path / "study.json", {"name": "gold", "conditions": {}, "comparison": "comparison"})
    numbers = gather(StudyRecord.read(tmp_path / "study.json"))
    page = render(numbers)
    assert [part["measure"] for part in numbers["gold"]["measures"]] == [
        "cloze_bits_per_byte", "cloze_accuracy", "gold_accuracy"]
    assert CLOZE_BITS_PER_BYTE.unit in page and "Right answers by likelihood" in page
    assert "chance gives 33.3" in page
    rows = {row["label"]: row for family in numbers["gold"]["measures"][0]["families"] for row in family["rows"]}
    assert rows["high − low"]["direction"] == "better"
    assert numbers["verdict"]["text"].startswith("No condition can be told apart")  # NPM is the headline
    assert any("bits\N{NO-BREAK SPACE}a\N{NO-BREAK SPACE}byte of right options" in verdict
               for verdict in numbers["verdict"]["verdicts"])


def test_the_primary_measure_is_corrected_alone_and_makes_the_headline(evaluate, run, tmp_path):
    found = run({"low": [evaluate("l", seed=1)], "high": [evaluate("h", gold=0.1, seed=3)]}, "low",
                primary="gold_accuracy")
    first, *others = found["gold"]["measures"]
    assert first["measure"]["name"] == found["gold"]["primary"] == "gold_accuracy"
    [difference] = first["differences"]
    assert difference["p_corrected"] == difference["estimate"]["p"]
    ps = sorted((one["differences"][0]["estimate"]["p"], one["differences"][0]["p_corrected"]) for one in others)
    assert ps[0][1] == pytest.approx(min(1, 2 * ps[0][0]))
    write_json(tmp_path / "study.json", {"name": "gold", "conditions": {}, "comparison": "comparison"})
    told = gather(StudyRecord.read(tmp_path / "study.json"))["verdict"]
    assert told["text"].startswith("By likelihood “high” is ") and "points of likeliest answers better" in told["text"]
    assert told["is_claimed"]


def test_a_primary_measure_that_nobody_took_is_told(evaluate, run):
    with pytest.raises(UserError, match=r"primary = cloze_accuracy: no two conditions have it.*scoring="):
        run({"a": [evaluate("a", gold=None)], "b": [evaluate("b", gold=None, seed=2)]}, "a", primary="cloze_accuracy")


def test_no_primary_measure_leaves_requests_as_they_were(tmp_path):
    settings = CompareSettings(evaluations={"a": [tmp_path]}, baseline="a")
    assert "primary" not in request_settings(settings)
    assert request_settings(settings.model_copy(update={"primary": "gold_accuracy"}))["primary"] == "gold_accuracy"
