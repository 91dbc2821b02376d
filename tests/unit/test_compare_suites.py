"""Verdicts on suites: paired, in each metric's own unit and direction, and what cannot be compared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("lm_eval")
from lm_eval.api.registry import get_aggregation

from evaluation.compare_suites import CompareSuitesSettings, compare_answers
from evaluation.matched import load_evaluations, match_tasks
from evaluation.measures import harness_measure
from evaluation.suite_scores import _item_scores
from megatron_ext.artifacts import produce, write_json, write_text
from megatron_ext.errors import UserError

ITEMS = 200
RESULTS = {"profile": "official", "data": "official", "task_set": [], "deviations": [], "tasks": {}}
DESCRIBED = {"filter": "none", "num_fewshot": 0, "version": 1, "chance": None, "higher_is_better": True,
             "aggregation": "mean"}


def write_evaluation(folder: Path, seed: Any, skill: float, prompt: str = "", **changed: Any) -> Path:
    """An evaluation of one suite: right answers, bits a byte, and F1 of labels over the same items for all models."""
    rng, shared = np.random.default_rng(seed), np.random.default_rng(0)
    right = (shared.random(ITEMS) * 0.6 + rng.random(ITEMS) * 0.4 < skill).astype(float)
    sizes = shared.integers(50, 400, ITEMS).astype(float)
    nats = -sizes * (shared.normal(1.2, 0.2, ITEMS) - skill + rng.normal(0, 0.02, ITEMS))
    golds, guesses = shared.integers(0, 2, ITEMS), rng.random(ITEMS)
    labels = [[int(gold), int(gold if guess < skill else 1 - gold)] for gold, guess in zip(golds, guesses, strict=True)]
    values = {"cores": ("acc", right.tolist()), "contas": ("acc", right[::-1].tolist()),
              "prosa": ("bits_per_byte", np.stack([nats, sizes], axis=1).tolist()),
              "rotulos": ("f1", labels[:40]), "proprio": ("own", [1.0] * 5)}
    from sklearn.metrics import f1_score

    scores = {"cores": right.mean(), "contas": right.mean(), "prosa": -nats.sum() / sizes.sum() / np.log(2),
              "rotulos": f1_score(*zip(*labels[:40], strict=True)), "proprio": 1.0}
    told = {task: {**DESCRIBED, "metric": metric, "score": float(scores[task]), "num_items": len(items),
                   "scores": {f"{metric},none": float(scores[task])}} for task, (metric, items) in values.items()}
    told["cores"]["chance"] = told["contas"]["chance"] = 0.25
    told["prosa"] |= {"aggregation": "bits_per_byte", "higher_is_better": False}
    told["rotulos"]["aggregation"], told["proprio"]["aggregation"] = "f1", None
    told["cores"] |= changed
    rows = [{"suite": "mine", "task": task, "doc_id": number, "filter": "none", "doc_sha256": "d",
             "prompt_sha256": f"{task}{number}{prompt}", "metrics": {metric: value}}
            for task, (metric, items) in values.items() for number, value in enumerate(items)]

    def make(place: Path) -> dict[str, Any]:
        write_json(place / "results.json", RESULTS)
        write_text(place / "examples.jsonl", "")
        write_json(place / "suites.json", {"mine": {"task_set": list(values), "tasks": told}})
        write_text(place / "suite_examples.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
        return {}

    return produce(folder, kind="evaluation", settings={"seed": repr(seed), "skill": skill}, inputs={}, make=make).path


def compared(tmp_path: Path, skills: dict[str, float], seeds: int = 1, **settings: Any) -> dict[str, Any]:
    folders = {name: [write_evaluation(tmp_path / f"{name}{seed}", [number, seed], skill)
                      for seed in range(1 if name == "base" else seeds)]
               for number, (name, skill) in enumerate(skills.items())}
    return compare_answers(CompareSuitesSettings(evaluations=folders, baseline="low", num_resamples=400, **settings))


def difference(comparison: dict[str, Any], metric: str, condition: str = "high",
               reference: str = "low") -> dict[str, Any]:
    (found,) = (one for part in comparison["suites"] if part["measure"]["name"] == f"harness:{metric}"
                for one in part["differences"] if (one["condition"], one["reference"]) == (condition, reference))
    return found


SKILLS = {"base": 0.4, "low": 0.5, "high": 0.65}


def test_each_metric_has_its_unit_direction_and_verdict(tmp_path: Path) -> None:
    comparison = compared(tmp_path, SKILLS)
    assert [(part["measure"]["unit"], [task["name"] for task in part["tasks"]], part["chance"])
            for part in comparison["suites"]] == [
        ("points of acc", ["cores", "contas"], 25.0), ("bits a byte", ["prosa"], None), ("of f1", ["rotulos"], None)]
    accuracy, bits = difference(comparison, "acc"), difference(comparison, "bits_per_byte")
    assert accuracy["is_claimed"] and accuracy["estimate"]["value"] > 5
    assert accuracy["verdict"].startswith("Suite “mine”: high is better than low: +")
    assert "points of acc" in accuracy["verdict"] and "n = 400 items of 2 tasks" in accuracy["verdict"]
    assert bits["is_claimed"] and bits["estimate"]["value"] < 0
    assert "high is better than low: −" in bits["verdict"] and "fewer is better" in bits["verdict"]
    assert accuracy["tasks"].keys() == {"cores", "contas"}
    (own,) = (one for one in comparison["caveats"] if "proprio" in one)
    assert own == "Suite “mine”: proprio is not compared: own is aggregated by code of the task's own."
    assert comparison["scores"]["mine"]["proprio"]["own,none"]["high (model 1)"] == 1.0


def test_equal_models_are_told_apart_by_nothing(tmp_path: Path) -> None:
    comparison = compared(tmp_path, {"low": 0.5, "high": 0.5})
    assert not any(one["is_claimed"] for part in comparison["suites"] for one in part["differences"])
    assert "No difference can be claimed between high and low" in difference(comparison, "acc")["verdict"]


def test_the_values_are_those_of_the_harness(tmp_path: Path) -> None:
    comparison = compared(tmp_path, SKILLS)
    for metric, task, scale in (("acc", "cores", 100), ("bits_per_byte", "prosa", 1), ("f1", "rotulos", 1)):
        (part,) = (one for one in comparison["suites"] if one["measure"]["name"] == f"harness:{metric}")
        for name in SKILLS:
            score = comparison["scores"]["mine"][task][f"{metric},none"][f"{name} (model 1)"]
            assert part["conditions"][name]["tasks"][task]["value"] == pytest.approx(scale * score)
            estimate = part["conditions"][name]["tasks"][task]
            assert estimate["low"] < scale * score < estimate["high"]


def test_a_primary_suite_is_corrected_by_itself(tmp_path: Path) -> None:
    alone = difference(compared(tmp_path / "a", SKILLS, primary="mine"), "acc")
    assert alone["p_corrected"] == difference(compared(tmp_path / "b", SKILLS), "acc")["p_corrected"]


def test_seeds(tmp_path: Path) -> None:
    comparison = compared(tmp_path, SKILLS, seeds=3)
    assert not any("one training run" in caveat for caveat in comparison["caveats"])
    assert [len(one["per_seed"]) for one in comparison["suites"][0]["conditions"].values()] == [1, 3, 3]


@pytest.mark.parametrize(("changed", "told"), [
    ({"num_fewshot": 5}, "mine/cores: num_fewshot is 0 for low (model 1), 5 for high (model 1)"),
    ({"version": 2}, "mine/cores: version is 1 for low (model 1), 2 for high (model 1)"),
    ({"score": 0.99}, "mine/cores: the items of high (model 1) give"),
])
def test_what_cannot_be_compared(tmp_path: Path, changed: dict[str, Any], told: str) -> None:
    folders = {"low": [write_evaluation(tmp_path / "low", 1, 0.5)],
               "high": [write_evaluation(tmp_path / "high", 2, 0.6, **changed)]}
    with pytest.raises(UserError) as error:
        compare_answers(CompareSuitesSettings(evaluations=folders, baseline="low", num_resamples=200))
    assert told in str(error.value)


def test_other_items_are_refused(tmp_path: Path) -> None:
    folders = {"low": [write_evaluation(tmp_path / "low", 0, 0.5)]}
    folders["high"] = [write_evaluation(tmp_path / "other", 1, 0.5, prompt="another")]
    with pytest.raises(UserError, match="mine/cores: the items or prompts of low"):
        compare_answers(CompareSuitesSettings(evaluations=folders, baseline="low", num_resamples=200))


def test_poeta_is_not_compared_where_it_was_not_evaluated(tmp_path: Path) -> None:
    folder = write_evaluation(tmp_path / "low", 1, 0.5)
    with pytest.raises(UserError, match=r"holds no task of PoETa V2; evaluation\.compare_suites compares suites"):
        match_tasks(load_evaluations({"low": [folder]}, []))


@pytest.mark.parametrize("aggregation", ["nanmean", "perplexity", "weighted_perplexity", "bits_per_byte", "f1",
                                         "matthews_corrcoef"])
def test_sums_give_what_the_harness_computes(aggregation: str) -> None:
    rng = np.random.default_rng(0)
    values: Any = rng.normal(-2, 1, 50)
    if aggregation in ("weighted_perplexity", "bits_per_byte"):
        values = np.stack([values * 20, rng.integers(1, 50, 50)], axis=1)
    if aggregation in ("f1", "matthews_corrcoef"):
        values = rng.integers(0, 2, (50, 2))
    weights = rng.integers(0, 4, (5, 50))
    found = _item_scores(aggregation, values.tolist(), 1.0).resampled(weights)
    expected = [get_aggregation(aggregation)(np.repeat(values, row, axis=0).tolist()) for row in weights]
    assert found == pytest.approx(expected)


def test_a_metric_that_is_not_known_has_its_task_s_direction() -> None:
    measure = harness_measure("toxicity", higher_is_better=False)
    assert (measure.unit, measure.low, measure.high) == ("of toxicity", None, None)
    assert measure.is_better(-1.0)
