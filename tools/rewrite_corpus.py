"""Rewrite the documents of a selection in several styles with an instruct model; outputs are checked and counted.

    python -m tools.rewrite_corpus --output work/rewrites documents=work/high model=work/model tokenizer=work/model

With engine=vllm it goes on in the environment that `make vllm` makes.
"""

from __future__ import annotations

import sys

from megatron_ext.data.rewriting.environment import enter_vllm_environment
from megatron_ext.data.rewriting.rewrite import rewrite_corpus
from megatron_ext.data.rewriting.settings import RewriteSettings
from megatron_ext.errors import exit_on_user_error
from megatron_ext.parts import Merge
from megatron_ext.settings import parse_stage_arguments


@exit_on_user_error
def main() -> None:
    """Run the stage."""
    settings, output, share = parse_stage_arguments(RewriteSettings, __doc__, parts=True)
    if settings.engine == "vllm" and not isinstance(share, Merge):
        enter_vllm_environment()
    rewrites = rewrite_corpus(settings, output, share)
    for style, counts in rewrites.counts["chunks"].items():
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in counts["reasons"].items())
        print(f"  {style}: {counts['num_survived']:,} of {counts['num_chunks']:,} chunks survived the checks"
              + (f" ({reasons})" if reasons else ""))
    print(f"{rewrites.counts['documents']:,} rewrites, {rewrites.counts['tokens']:,} tokens -> {rewrites.path}")


if __name__ == "__main__":
    sys.exit(main())
