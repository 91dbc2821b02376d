"""Suites as several models answered them, matched item by item; scores as functions of item weights."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from evaluation.contrasts import MeasuredMeans
from evaluation.item_scores import ItemScores, SumScores, mean_scores
from evaluation.matched import Evaluation
from evaluation.measures import SHARES, harness_measure
from evaluation.suites.evaluate import SUITE_EXAMPLES, SUITES
from megatron_ext.errors import UserError

_SAME = ("metric", "filter", "aggregation", "higher_is_better", "num_fewshot", "version", "num_items", "chance")
_FACTS = ("doc_id", "prompt_sha256", "doc_sha256")
_TOLERANCE = 1e-4
Row = Mapping[str, Any]


@dataclass(frozen=True)
class SuiteAnswers:
    """One model's answers to all suites."""

    evaluation: Evaluation
    told: dict[str, Any]
    """suites.json."""
    rows: dict[tuple[str, str], list[Row]]
    """(suite, task) -> its rows under the filter that it is compared by, ordered by doc_id."""

    @property
    def name(self) -> str:
        """Condition and number of the model in it, for messages."""
        return self.evaluation.name

    def task(self, suite: str, task: str) -> dict[str, Any]:
        """What suites.json says of a task."""
        return self.told[suite]["tasks"][task]


@dataclass(frozen=True)
class SuiteTask(MeasuredMeans):
    """One task of a suite as all models answered it."""

    chance: float | None
    """What picking each option equally often gives."""


def load_suites(evaluations: Sequence[Evaluation]) -> list[SuiteAnswers]:
    """The suites of evaluations. Raises UserError, with every difference that forbids a comparison."""
    answers = [_load(one) for one in evaluations]
    problems = [problem for other in answers[1:] for problem in _mismatches(answers[0], other)]
    if problems:
        raise UserError(f"these suites cannot be compared: {'; '.join(problems[:6])}. Evaluate all models with the "
                        "same suites, data and version")
    return answers


def match_suite(suite: str, answers: Sequence[SuiteAnswers]) -> dict[tuple[str, bool], list[SuiteTask]]:
    """(metric, whether more is better) -> the tasks of a suite that are compared by it, in their order."""
    found: dict[tuple[str, bool], list[SuiteTask]] = {}
    for task in answers[0].told[suite]["task_set"]:
        told = answers[0].task(suite, task)
        if not why_not_compared(told):
            found.setdefault((told["metric"], told["higher_is_better"]), []).append(_match(suite, task, answers))
    return found


def why_not_compared(told: Mapping[str, Any]) -> str | None:
    """Why a task has scores but no intervals; None where it has them."""
    if told["aggregation"] is None:
        return f"{told['metric']} is aggregated by code of the task's own"
    if told["aggregation"] not in ("mean", *_SUMS):
        return f"{told['metric']} ({told['aggregation']}) does not follow from sums over items"
    return None


def _load(evaluation: Evaluation) -> SuiteAnswers:
    path = evaluation.path / SUITES
    if not path.exists():
        raise UserError(f"{evaluation.path} holds no suites; evaluate the model with suites=…")
    told = json.loads(path.read_text(encoding="utf-8"))
    rows: dict[tuple[str, str], list[Row]] = {}
    with open(evaluation.path / SUITE_EXAMPLES, encoding="utf-8") as file:
        for row in map(json.loads, file):
            if row["filter"] == told[row["suite"]]["tasks"][row["task"]]["filter"]:
                rows.setdefault((row["suite"], row["task"]), []).append(row)
    return SuiteAnswers(evaluation, told, {key: sorted(some, key=lambda row: row["doc_id"])
                                           for key, some in rows.items()})


def _mismatches(first: SuiteAnswers, other: SuiteAnswers) -> Iterator[str]:
    pair = f"{first.name} and {other.name}"
    sets = [{suite: told["task_set"] for suite, told in one.told.items()} for one in (first, other)]
    if sets[0] != sets[1]:
        yield f"suites of {pair}: {sets[0]} and {sets[1]}"
        return
    for suite, task in first.rows:
        mine, theirs = first.task(suite, task), other.task(suite, task)
        differing = [f"{key} is {mine[key]!r} for {first.name}, {theirs[key]!r} for {other.name}"
                     for key in _SAME if mine[key] != theirs[key]]
        yield from (f"{suite}/{task}: {problem}" for problem in differing)
        if not differing and _facts(first.rows[suite, task]) != _facts(other.rows.get((suite, task), [])):
            yield f"{suite}/{task}: the items or prompts of {pair} differ"


def _facts(rows: Sequence[Row]) -> list[list[Any]]:
    """What no model decides."""
    return [[row[key] for key in _FACTS] for row in rows]


def _match(suite: str, task: str, answers: Sequence[SuiteAnswers]) -> SuiteTask:
    told = answers[0].task(suite, task)
    metric, scale = told["metric"], 100.0 if told["metric"] in SHARES else 1.0
    items: list[ItemScores] = []
    for one in answers:
        values = [_number(row["metrics"][metric]) for row in one.rows[suite, task] if metric in row["metrics"]]
        items.append(_item_scores(told["aggregation"], values, scale))
        _check(f"{suite}/{task}", one, items[-1], scale)
    scores = [scale * _number(one.task(suite, task)["score"]) for one in answers]
    chance = None if told["chance"] is None else scale * told["chance"]
    return SuiteTask(task, harness_measure(metric, told["higher_is_better"]), scores, items, chance)


def _number(value: Any) -> Any:
    """A value of an item with NaN for null, which stands for a number that is not finite."""
    if isinstance(value, list):
        return [_number(one) for one in value]
    return math.nan if value is None else value


def _check(where: str, one: SuiteAnswers, items: ItemScores, scale: float) -> None:
    """Raise UserError where the items do not give the stored score."""
    score = scale * _number(one.task(*where.split("/", 1))["score"])
    found = float(items.resampled(np.ones((1, items.num_items)))[0])
    if not np.isclose(found, score, rtol=_TOLERANCE, atol=_TOLERANCE * scale, equal_nan=True):
        raise UserError(f"{where}: the items of {one.name} give {found:.6g}, its {SUITES} says {score:.6g}; they do "
                        "not belong together: delete the evaluation and run it again")


def _item_scores(aggregation: str, values: Sequence[Any], scale: float) -> ItemScores:
    """The harness' aggregation of items as a function of their weights."""
    if aggregation == "mean":
        return mean_scores([scale * value for value in values])
    columns, finish = _SUMS[aggregation]
    return SumScores(columns(np.asarray(values, dtype=np.float64)), lambda sums, n: scale * finish(sums.T))


def _of_confusion(pairs: np.ndarray) -> np.ndarray:
    """Columns of [gold, prediction] pairs of 0 and 1: both 1, both 0, gold alone, prediction alone."""
    gold, predicted = (pairs == 1).T
    return np.stack([gold & predicted, ~gold & ~predicted, gold & ~predicted, ~gold & predicted], axis=1).astype(float)


def _f1(sums: np.ndarray) -> np.ndarray:
    both, _, missed, false = sums
    return 2 * both / np.maximum(2 * both + missed + false, 1)


def _mcc(sums: np.ndarray) -> np.ndarray:
    both, neither, missed, false = sums
    product = (both + missed) * (both + false) * (neither + missed) * (neither + false)
    return (both * neither - missed * false) / np.sqrt(np.maximum(product, 1))


def _counted(values: np.ndarray) -> np.ndarray:
    """Columns of numbers: each but NaN, and whether it counts."""
    return np.stack([np.nan_to_num(values), ~np.isnan(values)], axis=1).astype(float)


_SUMS: dict[str, tuple[Callable[[np.ndarray], np.ndarray], Callable[[np.ndarray], np.ndarray]]] = {
    "nanmean": (_counted, lambda sums: sums[0] / np.maximum(sums[1], 1)),
    "perplexity": (_counted, lambda sums: np.exp(-sums[0] / sums[1])),
    "weighted_perplexity": (lambda pairs: pairs, lambda sums: np.exp(-sums[0] / sums[1])),
    "bits_per_byte": (lambda pairs: pairs, lambda sums: -sums[0] / sums[1] / math.log(2)),
    "f1": (_of_confusion, _f1),
    "matthews_corrcoef": (_of_confusion, _mcc),
}
"""Aggregation of the harness -> (columns that are summed over items, score of the sums)."""
