"""Stage 7: compare conditions on the items that their models answered.

    python -m evaluation.compare --output work/comparison baseline=low \
        evaluations='{base: [eval/base], low: [eval/low-0, eval/low-1], high: [eval/high-0, eval/high-1]}'
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, model_validator

from evaluation import verdicts
from evaluation.categories import read_categories
from evaluation.compare_gold import compare_gold
from evaluation.comparing import numbered, refuse_unknown_names, tell, with_baseline
from evaluation.contrasts import Contrasts, difference_of_differences, ordered_pairs
from evaluation.curves import Trajectories, last_checkpoints, load_along, score_curves
from evaluation.matched import (
    Evaluation,
    MatchedTask,
    load_evaluations,
    match_means,
    match_tasks,
    refuse_copies,
    uneven_changes,
    uneven_engines,
)
from evaluation.poeta.table import LikelihoodMeasure
from evaluation.statistics import holm, settle
from evaluation.task_signal import runs_along, task_signal
from megatron_ext.artifacts import Artifact, write_json
from megatron_ext.errors import exit_on_user_error
from megatron_ext.identity import PLACE
from megatron_ext.settings import parse_stage_arguments
from megatron_ext.stage import StageSettings, make_artifact

GROUPS = ("all", "native", "translated")
Categories = dict[str, list[str]]
"""Category -> tasks."""


class CompareSettings(StageSettings):
    """What is compared with what."""

    evaluations: Annotated[dict[str, list[Path]], PLACE]
    """Condition -> evaluation folders, one a seed."""
    baseline: str
    """Condition that the others are compared with first."""
    interactions: dict[str, list[str]] = Field(default_factory=dict)
    """Name -> conditions [a, b, c, d]: is a - b another difference than c - d?"""
    given: list[str] = Field(default_factory=lambda: ["base"])
    """Conditions that are a given model, not a training run: no seed could have changed them."""
    categories: Annotated[Path | None, PLACE] = None
    """YAML file: category -> tasks; none: the one that is shipped."""
    along_training: Annotated[dict[str, dict[int, list[Path]]], PLACE] = Field(default_factory=dict)
    """Condition -> tokens seen -> evaluations of the checkpoints there, one a seed: curves of NPM over tokens."""
    outside: Annotated[dict[str, Path], PLACE] = Field(default_factory=dict)
    """Name -> evaluation of a model that is not compared (another base, size or seed): how far such models differ on a
    task is its signal."""
    primary: LikelihoodMeasure | None = None
    """Measure of gold answers whose differences are corrected for their own number alone: named before anything was
    measured; none: NPM, or a held-out text."""
    mean_of_last: int = Field(default=1, ge=1)
    """Checkpoints at the end of each run, of those in `along_training`, whose mean NPM is compared: less noise than the
    last alone."""
    matched_by: Literal["tokens", "documents", "compute"] = "tokens"
    """What the trained conditions had equally much of, stated with every verdict."""
    missing: list[str] = Field(default_factory=list)
    """What was to be compared, too: conditions, or seeds of them, that were not evaluated."""
    num_resamples: int = Field(default=10_000, ge=200)
    """Bootstrap resamples, and permutations of the test."""
    seed: int = Field(default=0, ge=0)
    """Decides the resamples."""

    @property
    def unused_sections(self) -> tuple[str, ...]:
        """What decides nothing unless it is named: comparisons from before it could be keep their names."""
        return (*(() if self.primary else ("primary",)), *(() if self.mean_of_last > 1 else ("mean_of_last",)))

    @model_validator(mode="after")
    def _names(self) -> CompareSettings:
        refuse_unknown_names("evaluations", self.evaluations, self.baseline, self.interactions)
        return self


class _Study(Contrasts[MatchedTask]):
    """All models on all tasks of PoETa V2 that were evaluated."""

    def __init__(self, evaluations: Sequence[Evaluation], along: Trajectories, settings: CompareSettings) -> None:
        number = settings.mean_of_last
        tasks = (match_tasks(evaluations) if number == 1 else
                 match_means(last_checkpoints(evaluations, along, number)))
        super().__init__([one.model for one in evaluations], tasks, settings.num_resamples, settings.seed)
        self.data: str = evaluations[0].results["data"]

    def group(self, name: str) -> list[MatchedTask]:
        """Tasks of a group."""
        return [task for task in self.tasks if name == "all" or task.translated == (name == "translated")]


def compare(settings: CompareSettings, output: Path) -> Artifact:
    """Make the artifact `output` (kind "comparison"): comparison.json.

    Raises UserError when the evaluations differ in profile, data, tasks, limits or any prompt.
    """
    more = {"conditions": {name: len(folders) for name, folders in settings.evaluations.items()},
            "categories": read_categories(settings.categories)}
    inputs = numbered(settings.evaluations)
    inputs |= {f"{name}/{tokens} tokens/{position}": folder for name, points in settings.along_training.items()
               for tokens, folders in points.items() for position, folder in enumerate(folders)}
    num_models = len(inputs)
    inputs |= {f"outside {name}": folder for name, folder in settings.outside.items()}

    def make(folder: Path) -> dict[str, Any]:
        comparison = compare_evaluations(settings)
        write_json(folder / "comparison.json", comparison)
        return {"items": comparison["num_items"], "tasks": len(comparison["tasks"]), "models": num_models}

    return make_artifact(output, kind="comparison", settings=settings, more=more, inputs=inputs, make=make)


def compare_evaluations(settings: CompareSettings) -> dict[str, Any]:
    """The content of comparison.json."""
    evaluations = load_evaluations(settings.evaluations, settings.given)
    refuse_copies(evaluations)
    along = load_along(evaluations, settings.along_training)
    study = _Study(evaluations, along, settings)
    categories = {name: tasks for name, tasks in read_categories(settings.categories).items() if study.named(tasks)}
    trained = [name for name in settings.evaluations if name not in settings.given]
    min_seeds = min((len(settings.evaluations[name]) for name in trained), default=0)
    results = evaluations[0].results
    gold = compare_gold(evaluations, settings)
    return {
        **({"gold": gold} if gold else {}),
        "profile": results["profile"],
        "data": results["data"],
        "deviations": results["deviations"],
        "task_set": results["task_set"],
        "tasks": [{"name": task.name, "metric": task.metric, "num_items": task.num_items,
                   "translated": task.translated, "random_score": task.random_score, "max_score": task.max_score}
                  for task in study.tasks],
        "num_items": study.num_items,
        "num_resamples": settings.num_resamples,
        "baseline": settings.baseline,
        "matched_by": settings.matched_by,
        "mean_of_last": settings.mean_of_last,
        "missing": settings.missing,
        "categories": {name: [task.name for task in study.named(tasks)] for name, tasks in categories.items()},
        "conditions": {name: _describe_condition(study, name, categories) for name in settings.evaluations},
        "differences": _differences(study, settings, categories),
        "interactions": _interactions(study, settings),
        "signal": task_signal(study, evaluations, runs_along(along), settings.outside, settings.given),
        "curves": score_curves(evaluations, along, settings.given, settings.num_resamples, settings.seed),
        "caveats": verdicts.caveats(num_items=study.num_items, num_tasks=len(study.tasks), data=results["data"],
                                    min_seeds=min_seeds, profile=results["profile"], deviations=results["deviations"],
                                    missing=settings.missing, changes=uneven_changes(evaluations),
                                    mean_of_last=settings.mean_of_last,
                                    engines=uneven_engines(evaluations)),
    }


def _describe_condition(study: _Study, condition: str, categories: Categories) -> dict[str, Any]:
    positions = study.positions(condition)
    npm = np.array([[task.npm(task.scores[i]) for task in study.tasks] for i in positions])
    return {
        "num_seeds": len(positions),
        "is_trained": study.models[positions[0]].is_trained,
        "npm": {group: study.score(condition, study.group(group))
                for group in GROUPS if study.group(group)},
        "categories": {name: study.score(condition, study.named(tasks)) for name, tasks in categories.items()},
        "npm_per_seed": [settle(value) for value in npm.mean(axis=1)],
        "tasks": {task.name: _describe_task(study, condition, task) for task in study.tasks},
    }


def _describe_task(study: _Study, condition: str, task: MatchedTask) -> dict[str, Any]:
    positions = study.positions(condition)
    npm = study.score(condition, [task])
    invalid = [rate for i in positions if (rate := task.invalid_rates[i]) is not None]
    return {
        "npm": npm,
        "score": float(np.mean([task.scores[i] for i in positions])),
        "score_low": None if npm["low"] is None else task.score(npm["low"]),
        "score_high": None if npm["high"] is None else task.score(npm["high"]),
        "invalid_rate": float(np.mean(invalid)) if invalid else None,
    }


def _differences(study: _Study, settings: CompareSettings, categories: Categories) -> list[dict[str, Any]]:
    """Every pair of conditions; p values are corrected within a family of comparisons (Holm).

    Categories make one more family: all categories of all comparisons of the family.
    """
    differences = [_difference(study, *pair, categories) for pair in
                   ordered_pairs(list(settings.evaluations), settings.given, settings.baseline)]
    for family in dict.fromkeys(one["family"] for one in differences):
        members = [one for one in differences if one["family"] == family]
        for one, p in zip(members, holm([one["npm"]["all"]["p"] for one in members]), strict=True):
            one["p_corrected"] = p
            one["verdict"] = _verdict(study, one)
            one["is_claimed"] = verdicts.obstacle(one["npm"]["all"], p, num_items=study.num_items,
                                                  data=study.data) is None
        _correct_categories(study, members)
    return differences


def _correct_categories(study: _Study, members: list[dict[str, Any]]) -> None:
    """Holm over every category of every comparison of a family."""
    estimates = [(name, estimate) for one in members for name, estimate in one["categories"].items()]
    for (_, estimate), p in zip(estimates, holm([estimate["p"] for _, estimate in estimates]), strict=True):
        estimate["p_corrected"] = p
        estimate["is_claimed"] = verdicts.obstacle(estimate, p, num_items=estimate["num_items"],
                                                   data=study.data) is None


def _difference(study: _Study, condition: str, reference: str, family: str,
                categories: Categories) -> dict[str, Any]:
    coefficients = {condition: 1.0, reference: -1.0}
    tasks = {task.name: study.estimate(coefficients, [task]) for task in study.tasks}
    for estimate, p in zip(tasks.values(), holm([estimate["p"] for estimate in tasks.values()]), strict=True):
        estimate["p_corrected"] = p
    groups = {group: study.estimate(coefficients, study.group(group)) for group in GROUPS if study.group(group)}
    by_category = {}
    for name, members in categories.items():
        chosen = study.named(members)
        by_category[name] = study.estimate(coefficients, chosen) | {"num_items": sum(one.num_items for one in chosen)}
    return {"condition": condition, "reference": reference, "family": family, "npm": groups, "tasks": tasks,
            "categories": by_category}


def _verdict(study: _Study, difference: dict[str, Any]) -> str:
    return verdicts.difference_verdict(
        difference["condition"], difference["reference"], difference["npm"]["all"], difference["p_corrected"],
        num_items=study.num_items, num_tasks=len(study.tasks), data=study.data,
        one_seed=study.is_unrepeated([difference["condition"], difference["reference"]]))


def _interactions(study: _Study, settings: CompareSettings) -> list[dict[str, Any]]:
    found = []
    for name, conditions in settings.interactions.items():
        coefficients = difference_of_differences(conditions)
        estimates = {group: study.estimate(coefficients, study.group(group)) for group in GROUPS if study.group(group)}
        found.append({"name": name, "conditions": conditions, "npm": estimates})
    for one, p in zip(found, holm([one["npm"]["all"]["p"] for one in found]), strict=True):
        one["p_corrected"] = p
        one["is_claimed"] = verdicts.obstacle(one["npm"]["all"], p, num_items=study.num_items, data=study.data) is None
        one["verdict"] = verdicts.interaction_verdict(one["name"], one["conditions"], one["npm"]["all"], p,
                                                      num_items=study.num_items, data=study.data)
    return found


@exit_on_user_error
def main() -> None:
    """Parse the command line, compare, tell the verdicts."""
    import json

    settings, output = parse_stage_arguments(CompareSettings, __doc__ or "")
    artifact = compare(settings, output)
    comparison = json.loads((artifact.path / "comparison.json").read_text(encoding="utf-8"))
    gold = comparison.get("gold", {"measures": [], "caveats": []})
    contrasts = [*comparison["differences"], *comparison["interactions"], *with_baseline(gold["measures"])]
    tell(contrasts, [*comparison["caveats"], *gold["caveats"]])


if __name__ == "__main__":
    sys.exit(main())
