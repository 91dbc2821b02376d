"""Stage 7: evaluate a model on any tasks of lm-evaluation-harness, as `lm_eval --model hf` does, without PoETa V2.

    python -m evaluation.run_suites --output scores model=work/model suites='{english: {tasks: [hellaswag, arc_easy]}}'
    python -m evaluation.run_suites --output scores model=work/model \\
        suites='{mine: {tasks: [my_task], include_path: my_tasks, limit: 200, num_fewshot: 0}}'

evaluation.run_poeta takes the same `suites` and evaluates PoETa V2 besides, with one load of the model. After an
interruption the same command goes on with the first batch that was not answered.
"""

from __future__ import annotations

import sys

from pydantic import Field

from evaluation.poeta.preview import describe_evaluation
from evaluation.poeta.run import PoetaSettings, evaluate_model
from evaluation.suites.settings import SuiteName, SuiteSettings
from megatron_ext.errors import exit_on_user_error
from megatron_ext.settings import parse_stage_arguments


class RunSuitesSettings(PoetaSettings):
    """Evaluation on suites."""

    suites: dict[SuiteName, SuiteSettings] = Field(min_length=1)
    """Name -> tasks of lm-evaluation-harness, evaluated exactly as `lm_eval --model hf` does."""
    tasks: tuple[str, ...] = ()
    """Tasks of PoETa V2 besides; none."""


@exit_on_user_error
def main() -> None:
    """Parse the command line, evaluate, say what came out."""
    settings, output = parse_stage_arguments(RunSuitesSettings, __doc__ or "", preview=describe_evaluation)
    for suite, scores in evaluate_model(settings, output).counts["suites"].items():
        print(*(f"{output}: {suite}/{task} {score:.4f}" for task, score in scores.items()), sep="\n")


if __name__ == "__main__":
    sys.exit(main())
