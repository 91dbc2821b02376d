"""Stage 1: select documents of a scored corpus by a rule, to an exact token budget.

    python -m tools.select_corpus --output work/high corpus=corpus/ tokenizer=models/tinyllama \
        scores.stem=stem_score scores.edu=edu_score rule='stem > 2.5 or edu > 2.5' budget_tokens=10000000000
"""

from __future__ import annotations

import sys
from typing import Any

from megatron_ext.data.selection import SelectSettings, select_corpus
from megatron_ext.data.selection.preview import describe_selection
from megatron_ext.errors import exit_on_user_error
from megatron_ext.parts import Part
from megatron_ext.settings import parse_stage_arguments


@exit_on_user_error
def main() -> None:
    """Parse the command line, select, say what came out."""
    settings, output, share = parse_stage_arguments(SelectSettings, __doc__ or "", preview=describe_selection,
                                                    parts=True)
    counts = select_corpus(settings, output, share).counts
    if isinstance(share, Part):
        print(f"{share.folder(output)}: {counts['documents']:,} of {counts['input_documents']:,} documents pass, "
              f"{counts['tokens']:,} tokens")
    else:
        print(f"{output}: {_summary(counts)}")


def _summary(counts: dict[str, Any]) -> str:
    rejected = ", ".join(f"{reason} {number:,}" for reason, number in counts["rejected"].items() if number)
    tokens = "not counted" if counts["tokens"] is None else f"{counts['tokens']:,}"
    lines = [f"{counts['documents']:,} of {counts['input_documents']:,} documents, tokens: {tokens}; "
             f"rejected: {rejected or 'none'}"]
    if counts["missing_tokens"]:
        lines.append(f"{counts['missing_tokens']:,} tokens are missing to the budget, which would take "
                     f"{counts['epochs_for_budget']:.2f} epochs")
    if "contamination" in counts:
        lines.append(f"{counts['contamination']['documents_hit']:,} documents hold a test item")
    return "; ".join(lines + counts["notes"])


if __name__ == "__main__":
    sys.exit(main())
