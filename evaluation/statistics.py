"""How sure a score or a difference is: paired bootstrap, permutation test, detectable effect, Holm's correction.

The unit of chance is the item (a question of a task) and, where a condition was trained with several seeds, the
training run. Items are resampled within each task, the same ones for all models, so that what makes an item easy or
hard for every model drops out of a difference. Values are in the unit of their measure (`evaluation.measures`); items
that are no independent evidence, such as a document and its rewrites, are one item here.

    replicates of a task = value of every model on R resamples of the task's items            `[R, models]`
    a contrast           = sum of coefficients x models: {a: 1, b: -1} is a difference
    interval             = percentiles of the contrast's replicates, stretched about the estimate so that few items
                           (n - 1, Student's t: Hesterberg 2015, arXiv 1411.5279) and the spread between seeds count
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

LEVEL = 0.95
POWER = 0.8
_BLOCK_CELLS = 4_000_000  # weights held at a time
_DECIMALS = 9  # of what is told: four digits above the noise of floating point on a scale of 100
_P_DIGITS = 9  # significant ones


@dataclass(frozen=True)
class TaskReplicates:
    """What one task says about all models."""

    num_items: int
    values: np.ndarray
    """Value of each model, `[models]`."""
    replicates: np.ndarray
    """Value of each model on each resample, `[R, models]`."""
    one_item: float
    """How much a value moves when one item goes from wrong to right; 0 where items are not right or wrong."""


@dataclass(frozen=True)
class Model:
    """One evaluated model."""

    condition: str
    is_trained: bool
    """False for a given model (the base): another seed could not have made another one of it."""


@dataclass(frozen=True)
class Estimate:
    """A number and how sure it is. None where the items cannot tell (one item, or all of them alike)."""

    value: float
    low: float | None
    high: float | None
    standard_error: float | None
    degrees_of_freedom: float | None
    p: float | None
    """Two-sided, of the hypothesis that the true value is 0; only for contrasts that sum to 0."""
    minimum_detectable: float | None
    """True effect that a study like this one would find with a power of 80 % at alpha = 5 %."""

    @classmethod
    def settled(cls, value: float, low: float | None = None, high: float | None = None,
                standard_error: float | None = None, degrees_of_freedom: float | None = None, p: float | None = None,
                minimum_detectable: float | None = None) -> Estimate:
        """An estimate without the digits in which processors differ: what is decided on it is decided alike."""
        return cls(settle(value), settle(low), settle(high), settle(standard_error), settle(degrees_of_freedom),
                   None if p is None else float(f"{p:.{_P_DIGITS}g}"), settle(minimum_detectable))


def settle(value: float | None) -> float | None:
    """A number without the digits in which one processor's arithmetic differs from another's; no -0.0."""
    return None if value is None else round(float(value), _DECIMALS) + 0.0


def combine(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """`values @ weights`, term by term: the order of a BLAS product, and so its last bit, is the processor's."""
    total = np.zeros(values.shape[:-1])
    for position in np.flatnonzero(weights):
        total = total + values[..., position] * weights[position]
    return total


def task_generator(seed: int, task: str, purpose: str) -> np.random.Generator:
    """Random numbers of a task: the same whatever other tasks there are."""
    return np.random.default_rng([seed, zlib.crc32(task.encode()), zlib.crc32(purpose.encode())])


def bootstrap_weights(num_items: int, num_resamples: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """How often each item occurs in each resample with replacement: blocks of float64 `[r, n]`, R rows in all."""
    for rows in _blocks(num_items, num_resamples):
        draws = rng.integers(num_items, size=(rows, num_items)) + num_items * np.arange(rows)[:, None]
        yield np.bincount(draws.ravel(), minlength=rows * num_items).reshape(rows, num_items).astype(np.float64)


def swap_masks(num_items: int, num_resamples: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Items whose answers two models exchange, each with probability 1/2: blocks of float64 `[r, n]`."""
    for rows in _blocks(num_items, num_resamples):
        yield rng.integers(2, size=(rows, num_items)).astype(np.float64)


def estimate_contrast(coefficients: dict[str, float], tasks: Sequence[TaskReplicates], models: Sequence[Model],
                      p_value: float | None = None) -> Estimate:
    """A linear combination of conditions' values (mean over tasks, then over a condition's seeds), with its error.

    Args:
        coefficients: condition -> coefficient; {a: 1} is a score, {a: 1, b: -1} a difference,
            {a: 1, b: -1, c: -1, d: 1} an interaction.
        p_value: from a permutation test, where there is one; else a t test is used for contrasts.
    """
    seeds = {name: [i for i, model in enumerate(models) if model.condition == name] for name in coefficients}
    weights = np.zeros(len(models))
    for name, coefficient in coefficients.items():
        weights[seeds[name]] = coefficient / len(seeds[name])
    value = float(np.mean([combine(task.values, weights) for task in tasks]))
    spread = _spread_over_items(tasks, weights)
    variance, freedom = _add_spread_over_seeds(spread, tasks, models, coefficients)
    if not np.isfinite(value) or spread.variance == 0 or freedom <= 0:
        detectable = minimum_detectable_effect(spread.floor ** 0.5, freedom) if freedom > 0 and spread.floor else None
        return Estimate.settled(value, minimum_detectable=detectable)
    error = variance ** 0.5
    low, high = _stretched_percentiles(value, spread.replicates, error, freedom)
    if p_value is None and sum(coefficients.values()) == 0:
        p_value = float(2 * stats.t.sf(abs(value) / error, freedom))
    detectable = minimum_detectable_effect(max(variance, spread.floor) ** 0.5, freedom)
    return Estimate.settled(value, low, high, error, freedom, p_value, detectable)


def minimum_detectable_effect(standard_error: float, degrees_of_freedom: float) -> float:
    """Effect that a two-sided t test at alpha = 5 % finds with a power of 80 %, given its standard error."""
    return float((stats.t.ppf((1 + LEVEL) / 2, degrees_of_freedom) + stats.t.ppf(POWER, degrees_of_freedom))
                 * standard_error)


def permutation_p(observed: float, permuted: np.ndarray) -> float:
    """Share of permutations at least as far from 0 as what was observed, which counts as one of them."""
    permuted = permuted[np.isfinite(permuted)]
    return float((1 + np.count_nonzero(np.abs(permuted) >= abs(observed) - 1e-9)) / (1 + len(permuted)))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """p values of a family, corrected by Holm's method; None stays None and does not count."""
    known = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    corrected: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, i) in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - rank) * p))
        corrected[i] = largest
    return corrected


def resample(num_items: int, num_resamples: int, rng: np.random.Generator,
             scores: Sequence[Callable[[np.ndarray], np.ndarray]]) -> np.ndarray:
    """Scores of several models on the same resamples, `[R, models]`."""
    blocks = [np.stack([score(weights) for score in scores], axis=1)
              for weights in bootstrap_weights(num_items, num_resamples, rng)]
    return np.concatenate(blocks)


@dataclass(frozen=True)
class _ItemSpread:
    replicates: np.ndarray
    """Of the mean over tasks, `[R]`."""
    variance: float
    degrees_of_freedom: float
    floor: float
    """Variance if a single item of each task had been answered otherwise: what "all alike" may hide."""


def _spread_over_items(tasks: Sequence[TaskReplicates], weights: np.ndarray) -> _ItemSpread:
    """Spread of a contrast that comes from the choice of items, tasks being independent (Satterthwaite 1946)."""
    share = 1 / len(tasks) ** 2
    sizes = np.array([task.num_items for task in tasks])
    variances = np.array([_variance(combine(task.replicates, weights)) for task in tasks])
    variances = share * variances * sizes / np.maximum(sizes - 1, 1)
    floors = share * np.array([task.one_item for task in tasks]) ** 2 * np.max(weights ** 2)
    variance = float(variances.sum())
    per_task = variances if variance else floors if floors.any() else np.ones(len(tasks))
    freedom = float(per_task.sum() ** 2 / (per_task ** 2 / np.maximum(sizes - 1, 1)).sum()) if sizes.max() > 1 else 0.0
    replicates = np.mean([combine(task.replicates, weights) for task in tasks], axis=0)
    return _ItemSpread(replicates[np.isfinite(replicates)], variance, freedom,
                       float(np.maximum(variances, floors).sum()))


def _add_spread_over_seeds(spread: _ItemSpread, tasks: Sequence[TaskReplicates], models: Sequence[Model],
                           coefficients: dict[str, float]) -> tuple[float, float]:
    """Variance and degrees of freedom of a contrast with the spread between training runs added.

    The spread between seeds is pooled over all conditions that have several. It holds the chance of items once more
    (each seed errs on items of its own), which the bootstrap measures and which is taken off; what remains is never
    below the spread over items alone.
    """
    seeds = [[i for i, model in enumerate(models) if model.condition == name]
             for name in dict.fromkeys(model.condition for model in models if model.is_trained)]
    repeated = [positions for positions in seeds if len(positions) > 1]
    trained = {models[positions[0]].condition: len(positions) for positions in seeds}
    factor = sum(value ** 2 / trained[name] for name, value in coefficients.items() if name in trained)
    if not repeated or factor == 0:
        return spread.variance, spread.degrees_of_freedom
    freedom = sum(len(positions) - 1 for positions in repeated)
    values = np.mean([task.values for task in tasks], axis=0)
    replicates = np.mean([task.replicates for task in tasks], axis=0)
    between = sum(_deviations(values, positions) for positions in repeated) / freedom
    by_items = sum(_deviations(replicates - values, positions) for positions in repeated) / freedom
    between_variance, item_variance = factor * float(between), factor * float(np.nanmean(by_items))
    variance = spread.variance + max(0.0, between_variance - item_variance)
    if variance == 0:
        return 0.0, float(freedom)
    uncertainty = spread.variance ** 2 / spread.degrees_of_freedom + between_variance ** 2 / freedom
    return variance, variance ** 2 / uncertainty


def _deviations(values: np.ndarray, positions: list[int]) -> np.ndarray:
    """Sum of squared deviations from the mean of a condition's seeds, along the last axis."""
    chosen = values[..., positions]
    return ((chosen - chosen.mean(axis=-1, keepdims=True)) ** 2).sum(axis=-1)


def _stretched_percentiles(value: float, replicates: np.ndarray, error: float, freedom: float) -> tuple[float, float]:
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(replicates, [tail, 1 - tail])
    stretch = stats.t.isf(tail, freedom) * error / (stats.norm.isf(tail) * replicates.std())
    return float(value - stretch * max(0.0, value - low)), float(value + stretch * max(0.0, high - value))


def _variance(values: np.ndarray) -> float:
    """Of the finite ones; a resample in which a metric is undefined says nothing."""
    finite = values[np.isfinite(values)]
    variance = float(finite.var()) if len(finite) else 0.0
    return variance if variance > 1e-18 else 0.0


def _blocks(num_items: int, num_resamples: int) -> Iterator[int]:
    rows = max(1, _BLOCK_CELLS // num_items)
    for start in range(0, num_resamples, rows):
        yield min(rows, num_resamples - start)
