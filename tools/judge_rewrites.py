"""Have an instruct model judge a random sample of accepted rewrites: what is unsupported, missing, contradicted.

    python -m tools.judge_rewrites --output work/judged rewrites=work/rewrites model=work/model engine=vllm

Prints the unfaithful share of each style with a 95 % interval and, measured in the same run on labelled pairs, how
often the judge itself is wrong. With engine=vllm it goes on in the environment that `make vllm` makes.
"""

from __future__ import annotations

import json
import sys

from megatron_ext.data.rewriting.environment import enter_vllm_environment
from megatron_ext.data.rewriting.judge.settings import JudgeSettings
from megatron_ext.data.rewriting.judge.stage import describe_requests, judge_rewrites
from megatron_ext.data.rewriting.judge.summary import SUMMARY_FILE, lines
from megatron_ext.errors import exit_on_user_error
from megatron_ext.settings import parse_stage_arguments


@exit_on_user_error
def main() -> None:
    """Run the stage."""
    settings, output = parse_stage_arguments(JudgeSettings, __doc__ or "", preview=describe_requests)
    if settings.engine == "vllm":
        enter_vllm_environment()
    judged = judge_rewrites(settings, output)
    print(*lines(json.loads((judged.path / SUMMARY_FILE).read_text(encoding="utf-8"))), sep="\n")
    print(f"{judged.counts['num_judged']:,} of {judged.counts['num_asked']:,} pairs judged -> {judged.path}")


if __name__ == "__main__":
    sys.exit(main())
