"""The part of a comparison that rests on likelihoods of gold answers: conditions that were scored, on what all share.

Every measure is a mean over the tasks for which it makes sense. Items of one id of a task are one cluster. NPM stays
the headline unless the study named a measure before it ran, which is then corrected for its own number alone; the p
values of all other measures of a family of comparisons are corrected together.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import numpy as np

from evaluation import verdicts
from evaluation.contrasts import (
    Contrasts,
    MeasuredMeans,
    compared_in,
    correct_by_family,
    measured_part,
    ordered_pairs,
)
from evaluation.matched import Evaluation
from evaluation.measures import LIKELIHOODS, MEASURES, Measure
from evaluation.poeta import task_spec
from evaluation.poeta.gold import form_of, item_value
from evaluation.poeta.table import LikelihoodMeasure
from evaluation.statistics import settle
from megatron_ext.errors import UserError

_FACTS = ("doc_id", "prompt_sha256", "gold", "bytes")
Row = Mapping[str, Any]


class GoldSettings(Protocol):
    """What decides how gold answers are compared: some of `evaluation.compare`'s settings."""

    baseline: str
    interactions: dict[str, list[str]]
    given: list[str]
    primary: LikelihoodMeasure | None
    num_resamples: int
    seed: int


def compare_gold(evaluations: Sequence[Evaluation], settings: GoldSettings) -> dict[str, Any] | None:
    """{"measures", "primary", "not_scored": conditions, "caveats"}; None where fewer than two conditions were scored.

    Raises UserError when two models were asked for other answers, or when the primary measure was not taken.
    """
    conditions = list(dict.fromkeys(one.model.condition for one in evaluations))
    not_scored = {one.model.condition for one in evaluations if not one.gold}
    scored = [one for one in evaluations if one.model.condition not in not_scored]
    names = [name for name in conditions if name not in not_scored]
    studies = _studies(scored, settings) if len(names) > 1 else {}
    if settings.primary and settings.primary not in studies:
        raise UserError(f"primary = {settings.primary}: no two conditions have it; evaluate them with "
                        "scoring=[generate, gold], on tasks for which it makes sense")
    if not studies:
        return None
    pairs = [pair for pair in ordered_pairs(conditions, settings.given, settings.baseline) if {*pair[:2]} <= {*names}]
    known = {name: four for name, four in settings.interactions.items() if {*four} <= {*names}}
    measures = [{**measured_part(study, MEASURES[name], names, pairs, known),
                 "chance": _chance(MEASURES[name], study, scored[0])} for name, study in studies.items()]
    for family in (True, False):
        _conclude([one for one in measures if (one["measure"]["name"] == settings.primary) == family], studies,
                  scored[0].results["data"])
    return {"measures": measures, "primary": settings.primary, "not_scored": sorted(not_scored),
            "caveats": list(_caveats(scored, not_scored))}


def _studies(scored: Sequence[Evaluation], settings: GoldSettings) -> dict[str, Contrasts[MeasuredMeans]]:
    """Measure -> its tasks as the models were scored on them; the primary one first."""
    models = [one.model for one in scored]
    return {measure.name: Contrasts(models, tasks, settings.num_resamples, settings.seed)
            for measure in sorted(LIKELIHOODS, key=lambda one: one.name != settings.primary)
            if (tasks := list(_tasks(measure, scored)))}


def _tasks(measure: Measure, evaluations: Sequence[Evaluation]) -> Iterator[MeasuredMeans]:
    """The tasks for which a measure makes sense, with the values of every model."""
    results = evaluations[0].results
    for name in results["task_set"]:
        if measure.name not in task_spec(name, results["profile"]).likelihood_measures:
            continue
        rows = [one.gold.get((name, form_of(measure.name)), []) for one in evaluations]
        for one, other in zip(rows[1:], evaluations[1:], strict=True):
            if _facts(one) != _facts(rows[0]):
                raise UserError(f"task {name}: the gold answers of {evaluations[0].name} and {other.name} differ in "
                                "prompts or answers; evaluate all models with the same version, settings and data")
        values = [_by_cluster(measure, one) for one in rows]
        if values[0]:
            yield MeasuredMeans.of(name, measure, values)


def _chance(measure: Measure, study: Contrasts[MeasuredMeans], evaluation: Evaluation) -> float | None:
    """What picking each option equally often gives, mean over tasks; None where nothing is picked."""
    if not measure.higher_is_better:
        return None
    rows = [evaluation.gold[task.name, form_of(measure.name)] for task in study.tasks]
    return settle(np.mean([np.mean([100 / len(row["options"]) for row in one if len(row["options"]) > 1])
                           for one in rows]))


def _facts(rows: Sequence[Row]) -> list[list[Any]]:
    """What no model decides."""
    return [[row[key] for key in _FACTS] + [one["bytes"] for one in row["options"]] for row in rows]


def _by_cluster(measure: Measure, rows: Sequence[Row]) -> list[float]:
    """The mean of each cluster, in the order of their first items."""
    clusters: dict[Any, list[float]] = {}
    for row in rows:
        value = item_value(measure.name, row)
        if value is not None:
            key = ("item", row["doc_id"]) if row["source_id"] is None else ("source", row["source_id"])
            clusters.setdefault(key, []).append(value)
    return [float(np.mean(values)) for values in clusters.values()]


def _conclude(measures: Sequence[dict[str, Any]], studies: Mapping[str, Contrasts[MeasuredMeans]], data: str) -> None:
    found = [(one, contrast) for one in measures for contrast in [*one["differences"], *one["interactions"]]]
    correct_by_family([contrast for _, contrast in found])
    for one, contrast in found:
        measure = MEASURES[one["measure"]["name"]]
        study = studies[measure.name]
        verdict = partial(verdicts.difference_verdict, num_tasks=len(study.tasks),
                          one_seed=study.is_unrepeated(compared_in(contrast)))
        verdicts.conclude(contrast, verdict, num_items=one["num_items"], data=data, measure=measure)


def _caveats(scored: Sequence[Evaluation], not_scored: Iterable[str]) -> Iterator[str]:
    if not_scored:
        yield f"Gold answers were not scored for {', '.join(sorted(not_scored))}: scoring=[generate, gold] does so."
    rows = [row for forms in scored[0].gold.values() for row in forms]
    num_cut = sum(row["num_dropped_tokens"] > 0 for row in rows)
    if num_cut:
        yield (f"Of {num_cut:,} of {len(rows):,} prompts with gold answers the model read the end alone: they are "
               "longer than its context.")
