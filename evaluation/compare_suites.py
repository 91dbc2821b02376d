"""Stage 7 on suites: compare conditions on any tasks of lm-evaluation-harness, item by item.

    python -m evaluation.compare_suites --output work/suites baseline=low \
        evaluations='{base: [eval/base], low: [eval/low-0, eval/low-1], high: [eval/high-0, eval/high-1]}'

Tasks of a suite that have one metric are compared together, by the plain mean over them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field, model_validator

from evaluation import verdicts
from evaluation.comparing import numbered, refuse_unknown_names, tell, with_baseline
from evaluation.contrasts import Contrasts, compared_in, correct_by_family, measured_part, ordered_pairs
from evaluation.matched import load_evaluations, refuse_copies, uneven_changes, uneven_engines
from evaluation.measures import Measure
from evaluation.overlap import load_overlap
from evaluation.statistics import settle
from evaluation.suite_scores import SuiteAnswers, SuiteTask, load_suites, match_suite, why_not_compared
from megatron_ext.artifacts import Artifact, write_json
from megatron_ext.errors import exit_on_user_error
from megatron_ext.identity import PLACE
from megatron_ext.settings import parse_stage_arguments
from megatron_ext.stage import StageSettings, make_artifact

COMPARISON = "suite_comparison.json"
KIND = "suite_comparison"


class CompareSuitesSettings(StageSettings):
    """What is compared with what."""

    evaluations: Annotated[dict[str, list[Path]], PLACE]
    """Condition -> evaluation folders, one a seed."""
    baseline: str
    """Condition that the others are compared with first."""
    primary: str | None = None
    """Suite whose differences are corrected for their own number alone: named before anything was measured."""
    interactions: dict[str, list[str]] = Field(default_factory=dict)
    """Name -> conditions [a, b, c, d]: is a - b another difference than c - d?"""
    given: list[str] = Field(default_factory=lambda: ["base"])
    """Conditions that are a given model, not a training run."""
    missing: list[str] = Field(default_factory=list)
    """What was to be compared, too."""
    overlap: Annotated[Path | None, PLACE] = None
    """Which items training text holds, too (artifact of tools.find_overlap, a text for each suite)."""
    num_resamples: int = Field(default=10_000, ge=200)
    """Bootstrap resamples, and permutations of the test."""
    seed: int = Field(default=0, ge=0)
    """Decides the resamples."""

    @model_validator(mode="after")
    def _names(self) -> CompareSuitesSettings:
        refuse_unknown_names("evaluations", self.evaluations, self.baseline, self.interactions)
        return self


@dataclass(frozen=True)
class _Part:
    """The tasks of a suite that have one metric."""

    suite: str
    study: Contrasts[SuiteTask]

    @property
    def measure(self) -> Measure:
        """Of all its tasks."""
        return self.study.tasks[0].measure


def compare_suites(settings: CompareSuitesSettings, output: Path) -> Artifact:
    """Make the artifact `output` (kind "suite_comparison"): suite_comparison.json.

    Raises UserError when two models were not asked the same in the same way.
    """
    more = {"conditions": {name: len(folders) for name, folders in settings.evaluations.items()}}
    inputs = numbered(settings.evaluations) | ({"overlap": settings.overlap} if settings.overlap else {})

    def make(folder: Path) -> dict[str, Any]:
        comparison = compare_answers(settings)
        write_json(folder / COMPARISON, comparison)
        return {"suites": {f"{one['suite']}: {one['measure']['unit']}": one["num_items"]
                           for one in comparison["suites"]}}

    return make_artifact(output, kind=KIND, settings=settings, more=more, inputs=inputs, make=make)


def compare_answers(settings: CompareSuitesSettings) -> dict[str, Any]:
    """The content of suite_comparison.json."""
    evaluations = load_evaluations(settings.evaluations, settings.given)
    refuse_copies(evaluations)
    answers = load_suites(evaluations)
    parts = [_Part(suite, Contrasts([one.model for one in evaluations], tasks, settings.num_resamples, settings.seed))
             for suite in answers[0].told for tasks in match_suite(suite, answers).values()]
    told = [_told(part, settings) for part in parts]
    for family in (True, False):
        _conclude([(part, one) for part, one in zip(parts, told, strict=True)
                   if (part.suite == settings.primary) == family])
    overlap = load_overlap(settings.overlap) if settings.overlap else None
    return {
        "suites": told, "baseline": settings.baseline, "primary": settings.primary, "missing": settings.missing,
        "num_resamples": settings.num_resamples, "overlap": overlap and overlap.texts,
        "scores": _scores(answers),
        "caveats": [*_caveats(parts, answers, settings),
                    *(overlap.caveats("keep", "items") if overlap else
                      ["Whether training text holds items of the suites, was not looked for."])],
    }


def _told(part: _Part, settings: CompareSuitesSettings) -> dict[str, Any]:
    pairs = ordered_pairs(list(settings.evaluations), settings.given, settings.baseline)
    told = measured_part(part.study, part.measure, list(settings.evaluations), pairs, settings.interactions)
    chances = {task.name: task.chance for task in part.study.tasks}
    known = [chance for chance in chances.values() if chance is not None]
    return {**told, "suite": part.suite, "tasks": [{**one, "chance": settle(chances[one["name"]])}
                                                   for one in told["tasks"]],
            "chance": settle(np.mean(known)) if len(known) == len(chances) else None}


def _conclude(parts: Sequence[tuple[_Part, dict[str, Any]]]) -> None:
    """Correct the p values of each family over these suites (Holm), and say what may be said."""
    found = [(part, contrast) for part, one in parts for contrast in [*one["differences"], *one["interactions"]]]
    correct_by_family([contrast for _, contrast in found])
    for part, contrast in found:
        verdict = partial(verdicts.difference_verdict, num_tasks=len(part.study.tasks),
                          one_seed=part.study.is_unrepeated(compared_in(contrast)))
        verdicts.conclude(contrast, verdict, num_items=part.study.num_items, measure=part.measure)
        contrast["verdict"] = f"Suite “{part.suite}”: {contrast['verdict']}"


def _scores(answers: Sequence[SuiteAnswers]) -> dict[str, Any]:
    """Suite -> task -> its scores by all metrics, of each model as the harness gives them."""
    return {suite: {task: {metric: {one.name: settle(one.task(suite, task)["scores"].get(metric)) for one in answers}
                           for metric in told["tasks"][task]["scores"]} for task in told["task_set"]}
            for suite, told in answers[0].told.items()}


def _caveats(parts: Sequence[_Part], answers: Sequence[SuiteAnswers], settings: CompareSuitesSettings) -> Iterator[str]:
    if settings.missing:
        yield f"Missing on the suites: {', '.join(settings.missing)}."
    evaluations = [one.evaluation for one in answers]
    if changes := uneven_changes(evaluations):
        yield f"Changed on the way in some runs and not in others: {'; '.join(changes)}."
    if engines := uneven_engines(evaluations):
        yield ("The models were not evaluated in the same way, and rounding alone changes answers: "
               f"{'; '.join(engines)}.")
    for suite, told in answers[0].told.items():
        yield from (f"Suite “{suite}”: {task} is not compared: {why}." for task, one in told["tasks"].items()
                    if (why := why_not_compared(one)))
    trained = [name for name in settings.evaluations if name not in settings.given]
    if parts and min((len(parts[0].study.positions(name)) for name in trained), default=2) < 2:
        yield ("Suites, one training run a condition: the intervals cover the choice of items, not what another seed "
               "would give.")


@exit_on_user_error
def main() -> None:
    """Parse the command line, compare, tell the verdicts."""
    settings, output = parse_stage_arguments(CompareSuitesSettings, __doc__ or "")
    artifact = compare_suites(settings, output)
    comparison = json.loads((artifact.path / COMPARISON).read_text(encoding="utf-8"))
    parts = sorted(comparison["suites"], key=lambda part: part["suite"] != settings.primary)
    tell(with_baseline(parts), comparison["caveats"])


if __name__ == "__main__":
    sys.exit(main())
