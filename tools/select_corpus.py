"""Stage 1: select documents of a scored corpus by a rule, to an exact token budget.

    python -m tools.select_corpus --output work/high corpus=corpus/ tokenizer=models/tinyllama \
        scores.stem=stem_score scores.edu=edu_score rule='stem > 2.5 or edu > 2.5' budget_tokens=10000000000
"""

from __future__ import annotations

import sys

from megatron_ext.data.selection import SelectSettings, select_corpus
from megatron_ext.errors import exit_on_user_error
from megatron_ext.settings import parse_stage_arguments


@exit_on_user_error
def main() -> None:
    """Parse the command line, select, say what came out."""
    settings, output = parse_stage_arguments(SelectSettings, __doc__ or "")
    counts = select_corpus(settings, output).counts
    rejected = ", ".join(f"{reason} {number:,}" for reason, number in counts["rejected"].items() if number)
    print(f"{output}: {counts['documents']:,} of {counts['input_documents']:,} documents, {counts['tokens']:,} tokens; "
          f"rejected: {rejected or 'none'}")


if __name__ == "__main__":
    sys.exit(main())
