"""NPM against tokens: the checkpoints along training, on the same items, each with its interval."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evaluation.contrasts import Contrasts
from evaluation.matched import Evaluation, load_evaluations, match_tasks, refuse_incomparable
from evaluation.statistics import settle
from megatron_ext.errors import UserError

MAX_RESAMPLES = 2000  # a band is drawn, not tested
Points = Mapping[str, Mapping[int, Sequence[Path]]]
"""Condition -> tokens seen -> evaluations of the checkpoints there, one a seed."""
Trajectories = dict[str, dict[int, list[Evaluation]]]
"""The same, read; in the order of tokens."""


def load_along(final: Sequence[Evaluation], along_training: Points) -> Trajectories:
    """Read the evaluations along training.

    Args:
        final: the comparison's evaluations.

    Raises UserError when a checkpoint was evaluated in another way than they were, or belongs to no condition of them.
    """
    for condition in along_training:
        if condition not in {evaluation.model.condition for evaluation in final}:
            raise UserError(f"along_training: {condition!r} is none of the conditions that are compared")
    places = {_name(condition, tokens): points[tokens]
              for condition, points in along_training.items() for tokens in sorted(points)}
    evaluations = load_evaluations(places, []) if any(places.values()) else []
    refuse_incomparable(final[0], evaluations)
    return {condition: {tokens: [one for one in evaluations if one.model.condition == _name(condition, tokens)]
                        for tokens in sorted(points)} for condition, points in along_training.items()}


def score_curves(final: Sequence[Evaluation], along: Trajectories, given: Sequence[str], num_resamples: int,
                 seed: int) -> dict[str, list[dict[str, Any]]]:
    """Condition -> points {"tokens", "npm" (estimate), "npm_per_seed"} in the order of tokens.

    Args:
        final: the comparison's evaluations; those of given models are the points at 0 tokens.
    """
    if not along:
        return {}
    evaluations = _flat(along)
    models = [one.model for one in evaluations]
    study = Contrasts(models, match_tasks(evaluations), min(num_resamples, MAX_RESAMPLES), seed)
    curves = {condition: [_point(study, condition, tokens) for tokens in points] for condition, points in along.items()}
    start = [evaluation for evaluation in final if evaluation.model.condition in given[:1]]
    if start:
        base = Contrasts([one.model for one in start], match_tasks(start), min(num_resamples, MAX_RESAMPLES), seed)
        npm = base.score(given[0], base.tasks)
        for points in curves.values():
            points.insert(0, {"tokens": 0, "npm": npm, "npm_per_seed": [npm["value"]]})
    return curves


def last_checkpoints(final: Sequence[Evaluation], along: Trajectories, number: int) -> list[list[Evaluation]]:
    """For each of the last checkpoints, latest last, the evaluations of all models in the order of `final`.

    Of a model without checkpoints along training that was not trained, its evaluation each time. Raises UserError for
    a run with fewer.
    """
    last = {condition: list(points.values())[::-1] for condition, points in along.items()}
    found = []
    for back in reversed(range(number)):
        seen: Counter[str] = Counter()
        found.append([_checkpoint(one, last, back, seen) for one in final])
    return found


def _checkpoint(model: Evaluation, last: Mapping[str, Sequence[Sequence[Evaluation]]], back: int,
                seen: Counter[str]) -> Evaluation:
    """A model's evaluation so many checkpoints before its last; `seen` counts the models of each condition so far."""
    if not model.model.is_trained:
        return model
    name = model.model.condition
    there = (last.get(name, [])[back:] or [[]])[0]
    if seen[name] >= len(there):
        raise UserError(f"mean_of_last: of {model.name} the checkpoint {back} before the last was not evaluated; name "
                        "it in along_training (evaluation.checkpoints of a study), or take fewer")
    seen[name] += 1
    return there[seen[name] - 1]


def _flat(along: Trajectories) -> list[Evaluation]:
    return [one for points in along.values() for evaluations in points.values() for one in evaluations]


def _point(study: Contrasts, condition: str, tokens: int) -> dict[str, Any]:
    name = _name(condition, tokens)
    per_seed = [settle(sum(task.npm(task.scores[i]) for task in study.tasks) / len(study.tasks))
                for i in study.positions(name)]
    return {"tokens": tokens, "npm": study.score(name, study.tasks), "npm_per_seed": per_seed}


def _name(condition: str, tokens: int) -> str:
    return f"{condition} at {tokens:,} tokens"
