"""Scores of one task as functions of item weights, so that ten thousand resamples cost one matrix product.

Most metrics follow from sums over items: a mean (sum of values), the F1 of labels (hits, predictions and golds of each
label), Pearson's r (first and second moments). For these an item is a row of features, a resample is a row of weights,
and the score of a resample is a function of `weights @ features`. Any other metric is computed item list by item list.

Shapes: R resamples, n items, d features of an item.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from evaluation.poeta import Profile
from evaluation.poeta.npm import preferred_score
from megatron_ext.errors import UserError

_TOLERANCE = 1e-4  # of the metric's range; stored scores may be rounded to two decimals of a hundred
Metrics = Mapping[str, Any]


class ItemScores(Protocol):
    """The items of one task as one model answered them."""

    num_items: int

    def resampled(self, weights: np.ndarray) -> np.ndarray:
        """Score of each resample, `[R]`; `weights` `[R, n]` says how often an item occurs in it."""
        ...

    def swapped(self, other: Any, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Scores `[R]` of this model and of `other` after they exchanged the answers where `mask` `[R, n]` is 1."""
        ...


@dataclass(frozen=True)
class MeanScores:
    """The mean of a model's scores at several checkpoints, on the same items."""

    parts: list[ItemScores]

    @property
    def num_items(self) -> int:
        """n."""
        return self.parts[0].num_items

    def resampled(self, weights: np.ndarray) -> np.ndarray:
        """Every checkpoint sees the same resample."""
        return _mean([part.resampled(weights) for part in self.parts])

    def swapped(self, other: MeanScores, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The same answers are exchanged at every checkpoint."""
        pairs = [mine.swapped(theirs, mask) for mine, theirs in zip(self.parts, other.parts, strict=True)]
        return _mean([mine for mine, _ in pairs]), _mean([theirs for _, theirs in pairs])


def _mean(scores: Sequence[np.ndarray]) -> np.ndarray:
    return sum(scores[1:], scores[0]) / len(scores)  # one after the other: the same bits everywhere


@dataclass(frozen=True)
class SumScores:
    """A metric that follows from sums over items."""

    features: np.ndarray
    """float64 `[n, d]`."""
    finish: Callable[[np.ndarray, int], np.ndarray]
    """(sums `[R, d]`, n) -> scores `[R]`."""

    @property
    def num_items(self) -> int:
        """n."""
        return len(self.features)

    @cached_property
    def _summable(self) -> np.ndarray:
        """Features on a grid so coarse (about 1e-12 of the largest) that sums of n of them are exact in any order.

        BLAS adds in an order of each processor's own; so every one gives the same bits.
        """
        largest = np.abs(self.features).max(axis=0, initial=0.0)
        _, exponent = np.frexp(largest * self.num_items)
        grid = np.ldexp(1.0, exponent - 52)
        return np.round(self.features / grid) * grid

    def resampled(self, weights: np.ndarray) -> np.ndarray:
        """See ItemScores."""
        return self.finish(weights @ self._summable, self.num_items)

    def swapped(self, other: SumScores, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See ItemScores."""
        moved = mask @ other._summable - mask @ self._summable
        own, others = self._summable.sum(axis=0), other._summable.sum(axis=0)
        return self.finish(own + moved, self.num_items), other.finish(others - moved, self.num_items)


@dataclass(frozen=True)
class ListScores:
    """Any metric, computed for one list of items at a time: exact and slow."""

    items: Sequence[Metrics]
    score: Callable[[Sequence[Metrics]], float]

    @property
    def num_items(self) -> int:
        """n."""
        return len(self.items)

    def resampled(self, weights: np.ndarray) -> np.ndarray:
        """See ItemScores."""
        positions = np.arange(self.num_items)
        return np.array([self.score([self.items[i] for i in np.repeat(positions, row.astype(int))]) for row in weights])

    def swapped(self, other: ListScores, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See ItemScores."""
        scores = []
        for row in mask.astype(bool):
            mine = [b if swap else a for a, b, swap in zip(self.items, other.items, row, strict=True)]
            theirs = [a if swap else b for a, b, swap in zip(self.items, other.items, row, strict=True)]
            scores.append((self.score(mine), self.score(theirs)))
        first, second = np.array(scores).T
        return first, second


def item_scores(task: str, metric: str, scores: Sequence[float], max_score: float,
                runs: Sequence[Sequence[Metrics]], profile: Profile = "official") -> list[ItemScores]:
    """The items of a task for each of several models, in the fastest form that reproduces all stored scores.

    Args:
        metric: name of the preferred metric; an item's value is a number, a [prediction, gold] pair of labels, or a
            pair of numbers.
        scores: the preferred metric over all items, for each model, as its evaluation stored it.
        max_score: the metric's highest value, which sets the scale.
        runs: per-example metrics of each model; the same items in the same order.

    Raises UserError when the per-example metrics do not give a stored score.
    """
    def score_list(items: Sequence[Metrics]) -> float:
        return float(preferred_score(task, list(items), profile))

    values = [[item.get(metric) for item in items] for items in runs]
    undefined = 0.0 if profile == "clean" else np.nan
    for form in (_as_means, _as_macro_f1, lambda pairs: _as_pearson(pairs, undefined)):
        made = form(values)
        if made is not None and _wrong_score(made, scores, max_score) is None:
            return made
    singles = [mean_scores([score_list([item]) for item in items]) for items in runs]
    if _wrong_score(singles, scores, max_score) is None:  # e.g. the F1 of words in answers: a mean over items
        return list(singles)
    lists = [ListScores(items, score_list) for items in runs]
    wrong = _wrong_score(lists, scores, max_score)
    if wrong is not None:
        raise UserError(f"task {task}: the examples of model {wrong + 1} do not give the {metric} = "
                        f"{scores[wrong]:.6g} of its results.json; they do not belong together: delete the evaluation "
                        "and run it again")
    return list(lists)


def mean_scores(values: Sequence[float]) -> SumScores:
    """A metric that is the mean of its items' values."""
    return SumScores(np.asarray(values, dtype=np.float64)[:, None], lambda sums, n: sums[:, 0] / n)


def macro_f1_scores(pairs: Sequence[Sequence[str]], labels: Sequence[str] | None = None) -> SumScores:
    """Macro F1, times 100, of [prediction, gold] pairs, over the labels that occur in a resample's golds.

    `labels`: all labels that golds may have (default: those of these pairs).
    """
    predictions, golds = np.array(pairs, dtype=object).T
    known = np.array(sorted(set(golds) if labels is None else set(labels)), dtype=object)
    predicted, gold = predictions[:, None] == known, golds[:, None] == known
    features = np.concatenate([predicted & gold, predicted, gold], axis=1).astype(np.float64)

    def finish(sums: np.ndarray, n: int) -> np.ndarray:
        hits, num_predicted, num_gold = np.split(sums, 3, axis=1)
        f1 = 2 * hits / np.maximum(num_predicted + num_gold, 1)
        present = num_gold > 0
        return 100 * (f1 * present).sum(axis=1) / present.sum(axis=1)

    return SumScores(features, finish)


def pearson_scores(pairs: Sequence[Sequence[float]], undefined: float = np.nan) -> SumScores:
    """Pearson's r of pairs of numbers; `undefined` where a side is constant or not finite."""
    x, y = np.asarray(pairs, dtype=np.float64).T
    features = np.stack([x, y, x * x, y * y, x * y], axis=1)

    def finish(sums: np.ndarray, n: int) -> np.ndarray:
        sum_x, sum_y, sum_xx, sum_yy, sum_xy = sums.T
        with np.errstate(invalid="ignore", divide="ignore"):
            var_x, var_y = sum_xx - sum_x**2 / n, sum_yy - sum_y**2 / n
            defined = (var_x > 1e-9 * sum_xx) & (var_y > 1e-9 * sum_yy)
            return np.where(defined, (sum_xy - sum_x * sum_y / n) / np.sqrt(var_x * var_y), undefined)

    return SumScores(features, finish)


def _as_means(runs: Sequence[Sequence[Any]]) -> list[ItemScores] | None:
    if not all(isinstance(value, int | float) for values in runs for value in values):
        return None
    return [mean_scores(values) for values in runs]


def _as_macro_f1(runs: Sequence[Sequence[Any]]) -> list[ItemScores] | None:
    if not all(_is_pair_of(str, value) for values in runs for value in values):
        return None
    labels = {gold for values in runs for _, gold in values}
    return [macro_f1_scores(values, sorted(labels)) for values in runs]


def _as_pearson(runs: Sequence[Sequence[Any]], undefined: float) -> list[ItemScores] | None:
    if not all(_is_pair_of((int, float), value) for values in runs for value in values):
        return None
    return [pearson_scores(values, undefined) for values in runs]


def _is_pair_of(kind: type | tuple[type, ...], value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2 and all(isinstance(part, kind) for part in value)


def _wrong_score(made: Sequence[ItemScores], scores: Sequence[float], max_score: float) -> int | None:
    """Position of the first model whose items do not give its stored score; None when all do."""
    for position, (one, score) in enumerate(zip(made, scores, strict=True)):
        found = one.resampled(np.ones((1, one.num_items)))[0]
        if not (np.isnan(found) and np.isnan(score)) and not abs(found - score) <= _TOLERANCE * max_score:
            return position
    return None
