"""Find held-out documents that training text holds, too: in words in a row, or as near duplicates.

    python -m tools.find_overlap --output work/overlap training='{high: work/high, low: work/low}' \
        neutral='{neutral: texts}' held_out='{high: work/high}' valid_fraction=0.01
"""

from __future__ import annotations

import sys

from megatron_ext.data.selection.overlap import OverlapSettings, find_overlap
from megatron_ext.errors import exit_on_user_error
from megatron_ext.settings import parse_stage_arguments


@exit_on_user_error
def main() -> None:
    """Run the stage."""
    settings, output = parse_stage_arguments(OverlapSettings, __doc__ or "")
    overlap = find_overlap(settings, output)
    for name, text in overlap.counts["texts"].items():
        print(f"{name}: training text holds {text['overlapping']:,} of {text['documents']:,} documents in part")
    print(f"-> {overlap.path}")


if __name__ == "__main__":
    sys.exit(main())
