"""Stage 7: evaluate a model on PoETa V2.

    python -m evaluation.run_poeta --output work/scores model=work/model
    python -m evaluation.run_poeta --output scores model=work/model tasks='[tweetsentbr_greedy, faquad]' data=poeta_data
    python -m evaluation.run_poeta --output scores model=work/model scoring='[generate, gold]'
    python -m evaluation.run_poeta --output scores model=my-model backend=local-completions \
        model_args='{base_url: "http://localhost:8000/v1/completions"}'

After an interruption the same command goes on with the first batch that was not answered.
"""

from __future__ import annotations

import sys

from evaluation.measures import MEASURES
from evaluation.poeta.preview import describe_evaluation
from evaluation.poeta.run import PoetaSettings, evaluate_model
from megatron_ext.errors import exit_on_user_error
from megatron_ext.settings import parse_stage_arguments


@exit_on_user_error
def main() -> None:
    """Parse the command line, evaluate, say what came out."""
    settings, output = parse_stage_arguments(PoetaSettings, __doc__ or "", preview=describe_evaluation)
    counts = evaluate_model(settings, output).counts
    score = "undefined" if counts["npm"] is None else f"{counts['npm']:.2f}"
    print(f"{output}: NPM {score} over {counts['tasks']} task(s), {counts['examples']:,} examples, "
          f"data: {counts['data']}")
    for measure, one in counts.get("likelihood", {}).items():
        print(f"  {measure} {MEASURES[measure].plain(one['value'])} over {one['num_tasks']} task(s)")
    for deviation in counts["deviations"]:
        print(f"  not the official protocol: {deviation}")


if __name__ == "__main__":
    sys.exit(main())
