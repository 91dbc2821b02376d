"""Aggregations: from per-example values to the final metric. Scales are those of the official harness."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Sequence


def mean(values: Sequence[float]) -> float:
    """Plain mean; booleans count as 0 and 1."""
    return sum(values) / len(values)


def mean_stderr(values: Sequence[float]) -> float:
    """Standard error of a mean: sample standard deviation / sqrt(n); 0 for one value."""
    if len(values) == 1:
        return 0.0
    center = mean(values)
    variance = sum((value - center) ** 2 for value in values) / (len(values) - 1)
    return math.sqrt(variance / len(values))


def macro_f1(pairs: Sequence[Sequence[str]]) -> float:
    """100 x mean over the labels that occur among the golds of their F1; pairs are [prediction, gold]."""
    scores, _ = _f1_per_gold_label(pairs)
    return 100 * sum(scores) / len(scores)


def weighted_f1(pairs: Sequence[Sequence[str]]) -> float:
    """As `macro_f1`, weighted by how often each label is the gold."""
    scores, supports = _f1_per_gold_label(pairs)
    return 100 * sum(score * support for score, support in zip(scores, supports, strict=True)) / sum(supports)


def pearson(pairs: Sequence[Sequence[float]]) -> float:
    """Correlation of [prediction, gold] pairs; NaN for constant, infinite, NaN or fewer than two values."""
    from scipy.stats import pearsonr

    predictions, golds = zip(*pairs, strict=True)
    if len(pairs) < 2 or not all(map(math.isfinite, predictions)):
        return math.nan
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a constant predictor: NaN says it
        return float(pearsonr(golds, predictions)[0])


def pearson_or_zero(pairs: Sequence[Sequence[float]]) -> float:
    """As `pearson`; 0, the level of guessing, where it is undefined."""
    correlation = pearson(pairs)
    return 0.0 if math.isnan(correlation) else correlation


def _f1_per_gold_label(pairs: Sequence[Sequence[str]]) -> tuple[list[float], list[int]]:
    """F1 of each gold label (0 where undefined) and its number of golds; predictions outside the labels cost recall."""
    golds = Counter(gold for _, gold in pairs)
    predictions = Counter(prediction for prediction, _ in pairs)
    hits = Counter(gold for prediction, gold in pairs if prediction == gold)
    labels = sorted(golds)
    return [2 * hits[label] / (golds[label] + predictions[label]) for label in labels], [golds[x] for x in labels]
