"""Judge rewrites beside their sources, also of other pipelines: which would be kept, and why the others not.

    python -m tools.check_rewrites pairs.jsonl --language pt --output judged.jsonl

FILE is JSONL or Parquet with the columns `source`, `text`, `style` (others are kept). Each row is written again with
`accepted`, `reasons`, `text` as it would be kept, and the measures. With a column `label` (good, bad) the false rates
are printed, by `kind` where there is one.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from megatron_ext.data.rewriting.packs import DEFAULT_LANGUAGE, languages
from megatron_ext.data.rewriting.pairs import judge_pairs
from megatron_ext.errors import exit_on_user_error


@exit_on_user_error
def main() -> None:
    """Judge the file and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, metavar="FILE", help="JSONL or Parquet (.parquet)")
    parser.add_argument("--language", default=DEFAULT_LANGUAGE,
                        help=f"of the texts: {', '.join(languages())}, or the folder of a pack of your own")
    parser.add_argument("--output", type=Path, required=True, help="JSONL to write")
    parser.add_argument("--tokenizer", type=Path, help="folder of a tokenizer that counts; without one, bytes count")
    parser.add_argument("--thresholds", type=Path, help="YAML file of thresholds by style, instead of the built-in one")
    parser.add_argument("--processes", type=int, default=1, help="processes that judge (default 1)")
    arguments = parser.parse_args()
    tally = judge_pairs(arguments.file, arguments.output, arguments.language, arguments.tokenizer, arguments.thresholds,
                        max(1, arguments.processes))
    print("\n".join(tally.lines()))
    print(f"-> {arguments.output}")


if __name__ == "__main__":
    sys.exit(main())
