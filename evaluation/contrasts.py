"""All models of a comparison on all tasks, with their resamples: contrasts of conditions on any group of tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from evaluation.matched import Evaluation, MatchedTask
from evaluation.statistics import (
    Model,
    TaskReplicates,
    estimate_contrast,
    permutation_p,
    resample,
    settle,
    swap_masks,
    task_generator,
)


class Contrasts:
    """All models on all tasks.

    Args:
        evaluations: of the models, comparable (see `load_evaluations`).
        tasks: their tasks, see `match_tasks`.
        num_resamples: bootstrap resamples, and permutations of the test.
        seed: decides both.
    """

    def __init__(self, evaluations: Sequence[Evaluation], tasks: Sequence[MatchedTask], num_resamples: int,
                 seed: int) -> None:
        self.num_resamples = num_resamples
        self.seed = seed
        self.tasks = list(tasks)
        self.models: list[Model] = [evaluation.model for evaluation in evaluations]
        self.data: str = evaluations[0].results["data"]
        self.num_items = sum(task.num_items for task in tasks)
        self.replicates = {task.name: self._replicates(task) for task in tasks}
        self._permuted: dict[tuple[str, ...], np.ndarray] = {}

    def positions(self, condition: str) -> list[int]:
        """Positions of a condition's models."""
        return [i for i, model in enumerate(self.models) if model.condition == condition]

    def group(self, name: str) -> list[MatchedTask]:
        """Tasks of a group."""
        return [task for task in self.tasks if name == "all" or task.translated == (name == "translated")]

    def named(self, names: Sequence[str]) -> list[MatchedTask]:
        """Tasks by name; those that were evaluated."""
        return [task for task in self.tasks if task.name in names]

    def score(self, condition: str, tasks: Sequence[MatchedTask]) -> dict[str, Any]:
        """NPM of a condition; its interval keeps to what scores can be."""
        estimate = self.estimate({condition: 1}, tasks)
        if estimate["low"] is not None:
            estimate["low"] = max(estimate["low"], settle(np.mean([task.npm(task.min_score) for task in tasks])))
            estimate["high"] = min(estimate["high"], 100.0)
        return estimate

    def estimate(self, coefficients: Mapping[str, float], tasks: Sequence[MatchedTask]) -> dict[str, Any]:
        """Estimate of a contrast on some tasks; single models that differ are tested by permutation."""
        chosen = [self.replicates[task.name] for task in tasks]
        p = self._permutation_p(list(coefficients), tasks) if sorted(coefficients.values()) == [-1, 1] else None
        return asdict(estimate_contrast(dict(coefficients), chosen, self.models, p))

    def _replicates(self, task: MatchedTask) -> TaskReplicates:
        rng = task_generator(self.seed, task.name, "bootstrap")
        scores = resample(task.num_items, self.num_resamples, rng, [items.resampled for items in task.items])
        one_item = 100 * task.max_score / (task.max_score - task.random_score) / task.num_items
        return TaskReplicates(task.num_items, task.npm(np.array(task.scores)), task.npm(scores), one_item)

    def _permutation_p(self, pair: list[str], tasks: Sequence[MatchedTask]) -> float | None:
        first, second = (self.positions(condition) for condition in pair)
        if len(first) > 1 or len(second) > 1:
            return None
        for task in tasks:
            if (task.name, *pair) not in self._permuted:
                self._permuted[(task.name, *pair)] = self._permute(task, first[0], second[0])
        observed = np.mean([task.npm(task.scores[first[0]]) - task.npm(task.scores[second[0]]) for task in tasks])
        permuted = np.mean([self._permuted[(task.name, *pair)] for task in tasks], axis=0)
        return permutation_p(float(observed), permuted) if np.isfinite(observed) else None

    def _permute(self, task: MatchedTask, first: int, second: int) -> np.ndarray:
        """NPM differences of two models under exchanges of their answers, `[R]`."""
        rng = task_generator(self.seed, task.name, "permutation")
        differences = []
        for mask in swap_masks(task.num_items, self.num_resamples, rng):
            mine, theirs = task.items[first].swapped(task.items[second], mask)
            differences.append(task.npm(mine) - task.npm(theirs))
        return np.concatenate(differences)
