"""Before anything is trained: which difference in NPM could a study find?

    python -m evaluation.power --output work/power evaluation=work/scores/base num_seeds=3 seed_spread_npm=0.5

The evaluation of the model before training tells how much its NPM depends on the choice of items. What makes an item
hard for every model drops out of a difference (`item_correlation`); the rest averages out over seeds, which add a
spread of their own. The minimum detectable effect is the true difference that a two-sided t test at 5 % finds with a
power of 80 %, the same definition as in `evaluation.compare`, where it is computed again from the data.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from evaluation.contrasts import Contrasts
from evaluation.matched import load_evaluations, match_tasks
from evaluation.statistics import minimum_detectable_effect
from megatron_ext.artifacts import Artifact, write_json
from megatron_ext.errors import UserError, exit_on_user_error
from megatron_ext.identity import PLACE
from megatron_ext.settings import parse_stage_arguments
from megatron_ext.stage import StageSettings, make_artifact


class PowerSettings(StageSettings):
    """What is planned."""

    evaluation: Annotated[Path, PLACE]
    """Evaluation of the model before training, with the tasks and limits of the study."""
    num_seeds: int = Field(default=1, ge=1)
    """Training runs a condition."""
    item_correlation: float = Field(default=0.5, ge=0, lt=1)
    """Correlation of two conditions' answers over items: 0 unrelated; models trained from one base have about 0.5."""
    seed_spread_npm: float = Field(default=0.0, ge=0)
    """Standard deviation of NPM between seeds of a condition beyond the chance of items, points; 0: not known."""
    num_resamples: int = Field(default=2000, ge=200)
    """Bootstrap resamples."""
    seed: int = Field(default=0, ge=0)
    """Decides the resamples."""


def plan_power(settings: PowerSettings, output: Path) -> Artifact:
    """Make the artifact `output` (kind "power"): power.json.

    Raises UserError when the evaluation's items cannot tell its error.
    """
    def make(folder: Path) -> dict[str, Any]:
        power = detectable_effects(settings)
        write_json(folder / "power.json", power)
        return power["minimum_detectable"]

    return make_artifact(output, kind="power", settings=settings, inputs={"evaluation": settings.evaluation}, make=make)


def detectable_effects(settings: PowerSettings) -> dict[str, Any]:
    """Minimum detectable effects, NPM points, of a difference of two conditions and of an interaction of four."""
    evaluations = load_evaluations({"base": [settings.evaluation]}, ["base"])
    models = [one.model for one in evaluations]
    study = Contrasts(models, match_tasks(evaluations), settings.num_resamples, settings.seed)
    estimate = study.score("base", study.tasks)
    error, freedom = estimate["standard_error"], estimate["degrees_of_freedom"]
    if error is None:
        raise UserError(f"{settings.evaluation}: its items are too few, or all answered alike, to tell an error")
    by_items = error**2 * (1 - settings.item_correlation) / settings.num_seeds
    by_seeds = settings.seed_spread_npm**2 / settings.num_seeds
    if settings.num_seeds > 1 and by_seeds:  # Satterthwaite's, with the seeds of four conditions pooled
        freedom = (by_items + by_seeds)**2 / (by_items**2 / freedom + by_seeds**2 / (4 * (settings.num_seeds - 1)))
    effects = {name: minimum_detectable_effect(math.sqrt(num_models * (by_items + by_seeds)), freedom)
               for name, num_models in (("difference", 2), ("interaction", 4))}
    return {"num_items": study.num_items, "num_tasks": len(study.tasks), "standard_error_npm": error,
            "minimum_detectable": effects}


@exit_on_user_error
def main() -> None:
    """Parse the command line, compute, tell."""
    settings, output = parse_stage_arguments(PowerSettings, __doc__ or "")
    effects = plan_power(settings, output).counts
    print(f"{output}: with {settings.num_seeds} run(s) a condition a difference of {effects['difference']:.1f} NPM, "
          f"and an interaction of {effects['interaction']:.1f} NPM, would be found four times out of five")


if __name__ == "__main__":
    sys.exit(main())
