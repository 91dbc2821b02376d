"""All models of a comparison on all tasks, with their resamples: contrasts of conditions on any group of tasks.

A task is whatever all models were measured on item by item: a task of PoETa V2, a held-out text.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any, Generic, Protocol, Self, TypeVar

import numpy as np

from evaluation.item_scores import ItemScores, mean_scores
from evaluation.measures import Measure
from evaluation.statistics import (
    Model,
    TaskReplicates,
    estimate_contrast,
    holm,
    permutation_p,
    resample,
    settle,
    swap_masks,
    task_generator,
)


class Measured(Protocol):
    """Items that all models were measured on."""

    name: str
    scores: list[float]
    """Of each model, over all items."""
    items: list[ItemScores]
    """Of each model; the same items in the same order."""

    @property
    def num_items(self) -> int:
        """Items, or clusters of them: what is resampled."""

    @property
    def bounds(self) -> tuple[float, float]:
        """Lowest and highest value that is possible."""

    @property
    def one_item(self) -> float:
        """How much the value moves when one item goes from wrong to right; 0 where items are not right or wrong."""

    def value(self, score: Any) -> Any:
        """What conditions are compared by, of a score or an array of scores."""


@dataclass(frozen=True)
class MeasuredMeans:
    """Means over items, or clusters of them, that are compared as they are; see `Measured`."""

    name: str
    measure: Measure
    scores: list[float]
    items: list[ItemScores]

    @classmethod
    def of(cls, name: str, measure: Measure, values: Sequence[Sequence[float]], **more: Any) -> Self:
        """Of the values of each model's items; the same items in the same order."""
        items = [mean_scores(one) for one in values]
        scores = [float(one.resampled(np.ones((1, one.num_items)))[0]) for one in items]
        return cls(name, measure, scores, list(items), **more)

    @property
    def num_items(self) -> int:
        """Items, or clusters of them."""
        return self.items[0].num_items

    @property
    def bounds(self) -> tuple[float, float]:
        """What the measure can be."""
        low, high = self.measure.low, self.measure.high
        return -math.inf if low is None else low, math.inf if high is None else high

    @property
    def one_item(self) -> float:
        """An item that is right or wrong moves the mean by its share; others by any amount."""
        return 0.0 if self.measure.high is None else self.measure.high / self.num_items

    def value(self, score: Any) -> Any:
        """The score itself."""
        return score


Task = TypeVar("Task", bound=Measured)


def ordered_pairs(conditions: Sequence[str], given: Sequence[str], baseline: str) -> list[tuple[str, str, str]]:
    """(condition, reference, family): against the baseline, against given models, and the rest."""
    trained = [name for name in conditions if name not in given and name != baseline]
    pairs = [(name, baseline, "baseline") for name in trained]
    references = [name for name in conditions if name in given and name != baseline]
    pairs += [(name, reference, "given") for reference in references for name in [baseline, *trained]]
    return pairs + [(name, reference, "others") for reference, name in combinations(trained, 2)]


def difference_of_differences(conditions: Sequence[str]) -> dict[str, float]:
    """Coefficients of (a - b) - (c - d)."""
    return dict(zip(conditions, (1.0, -1.0, -1.0, 1.0), strict=True))


def compared_in(comparison: Mapping[str, Any]) -> list[str]:
    """The conditions of a difference or an interaction."""
    return comparison.get("conditions") or [comparison["condition"], comparison["reference"]]


def correct_by_family(comparisons: Sequence[dict[str, Any]]) -> None:
    """Add `p_corrected` to comparisons: Holm's correction over those of one family."""
    for family in dict.fromkeys(one["family"] for one in comparisons):
        members = [one for one in comparisons if one["family"] == family]
        for one, p in zip(members, holm([one["estimate"]["p"] for one in members]), strict=True):
            one["p_corrected"] = p


class Contrasts(Generic[Task]):
    """All models on all tasks.

    Args:
        models: those that were measured.
        tasks: what they were measured on.
        num_resamples: bootstrap resamples, and permutations of the test.
        seed: decides both.
    """

    def __init__(self, models: Sequence[Model], tasks: Sequence[Task], num_resamples: int, seed: int) -> None:
        self.num_resamples = num_resamples
        self.seed = seed
        self.tasks = list(tasks)
        self.models = list(models)
        self.num_items = sum(task.num_items for task in tasks)
        self.replicates = {task.name: self._replicates(task) for task in tasks}
        self._permuted: dict[tuple[str, ...], np.ndarray] = {}

    def positions(self, condition: str) -> list[int]:
        """Positions of a condition's models."""
        return [i for i, model in enumerate(self.models) if model.condition == condition]

    def named(self, names: Sequence[str]) -> list[Task]:
        """Tasks by name; those that were evaluated."""
        return [task for task in self.tasks if task.name in names]

    def is_unrepeated(self, conditions: Sequence[str]) -> bool:
        """Whether one of the conditions is a single training run."""
        return any(len(positions := self.positions(name)) < 2 and self.models[positions[0]].is_trained
                   for name in conditions)

    def describe(self, condition: str, tasks: Sequence[Task]) -> dict[str, Any]:
        """A condition's mean over tasks, its error, and the means of its models."""
        positions = self.positions(condition)
        per_seed = [settle(np.mean([task.value(task.scores[i]) for task in tasks])) for i in positions]
        return {"num_seeds": len(positions), "is_trained": self.models[positions[0]].is_trained,
                "estimate": self.score(condition, tasks), "per_seed": per_seed}

    def score(self, condition: str, tasks: Sequence[Task]) -> dict[str, Any]:
        """Value of a condition, mean over tasks; its interval keeps to what can be."""
        estimate = self.estimate({condition: 1}, tasks)
        if estimate["low"] is not None:
            lowest, highest = (settle(np.mean(side)) for side in zip(*(task.bounds for task in tasks), strict=True))
            estimate["low"], estimate["high"] = max(estimate["low"], lowest), min(estimate["high"], highest)
        return estimate

    def estimate(self, coefficients: Mapping[str, float], tasks: Sequence[Task]) -> dict[str, Any]:
        """Estimate of a contrast on some tasks; single models that differ are tested by permutation."""
        chosen = [self.replicates[task.name] for task in tasks]
        p = self._permutation_p(list(coefficients), tasks) if sorted(coefficients.values()) == [-1, 1] else None
        return asdict(estimate_contrast(dict(coefficients), chosen, self.models, p))

    def _replicates(self, task: Task) -> TaskReplicates:
        rng = task_generator(self.seed, task.name, "bootstrap")
        scores = resample(task.num_items, self.num_resamples, rng, [items.resampled for items in task.items])
        return TaskReplicates(task.num_items, task.value(np.array(task.scores)), task.value(scores), task.one_item)

    def _permutation_p(self, pair: list[str], tasks: Sequence[Task]) -> float | None:
        first, second = (self.positions(condition) for condition in pair)
        if len(first) > 1 or len(second) > 1:
            return None
        for task in tasks:
            if (task.name, *pair) not in self._permuted:
                self._permuted[(task.name, *pair)] = self._permute(task, first[0], second[0])
        observed = np.mean([task.value(task.scores[first[0]]) - task.value(task.scores[second[0]]) for task in tasks])
        permuted = np.mean([self._permuted[(task.name, *pair)] for task in tasks], axis=0)
        return permutation_p(float(observed), permuted) if np.isfinite(observed) else None

    def _permute(self, task: Task, first: int, second: int) -> np.ndarray:
        """Differences of two models under exchanges of their answers, `[R]`."""
        rng = task_generator(self.seed, task.name, "permutation")
        differences = []
        for mask in swap_masks(task.num_items, self.num_resamples, rng):
            mine, theirs = task.items[first].swapped(task.items[second], mask)
            differences.append(task.value(mine) - task.value(theirs))
        return np.concatenate(differences)


def measured_part(study: Contrasts[MeasuredMeans], measure: Measure, names: Sequence[str],
                  pairs: Sequence[tuple[str, str, str]], interactions: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Values, differences and interactions in one measure, not yet corrected for their number."""
    def contrast(coefficients: Mapping[str, float]) -> dict[str, Any]:
        return {"estimate": study.estimate(coefficients, study.tasks),
                "tasks": {task.name: study.estimate(coefficients, [task]) for task in study.tasks}}

    return {
        "measure": asdict(measure), "num_items": study.num_items,
        "tasks": [{"name": task.name, "num_items": task.num_items} for task in study.tasks],
        "conditions": {name: study.describe(name, study.tasks) | {"tasks": {
            task.name: study.score(name, [task]) for task in study.tasks}} for name in names},
        "differences": [{"condition": condition, "reference": reference, "family": family,
                         **contrast({condition: 1.0, reference: -1.0})} for condition, reference, family in pairs],
        "interactions": [{"name": name, "conditions": four, "family": "interactions",
                          **contrast(difference_of_differences(four))}
                         for name, four in interactions.items()],
    }
