"""Look into tokenized data: counts, lengths, the text of a sequence and where it comes from, damage.

    python -m tools.inspect_data work/tokens
    python -m tools.inspect_data work/tokens --split valid --sequence 7 --tokenizer models/tinyllama
    python -m tools.inspect_data work/tokens --verify
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from megatron_ext.data.inspection import Dataset, decode_sequence, describe, open_dataset, sequence_record, verify
from megatron_ext.errors import UserError, exit_on_user_error


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="tokenized artifact, or path of a dataset without .bin/.idx")
    parser.add_argument("--split", default="train", help="split of the artifact: train or valid")
    parser.add_argument("--sequence", type=int, help="show this sequence, counted from 0")
    parser.add_argument("--tokenizer", type=Path, help="tokenizer folder, needed for the text of a sequence")
    parser.add_argument("--verify", action="store_true", help="recompute every hash")
    return parser.parse_args()


def show_sequence(dataset: Dataset, sequence: int, tokenizer: Path | None) -> None:
    """Print where a sequence comes from, and its text."""
    if tokenizer is None:
        raise UserError("--sequence needs --tokenizer, the folder of the tokenizer that the data was made with")
    text = decode_sequence(dataset, sequence, tokenizer)
    for name, value in sequence_record(dataset, sequence).items():
        print(f"{name}: {value}")
    print(text)


@exit_on_user_error
def main() -> int:
    """Show what was asked for; exit code 1 when --verify finds a fault."""
    arguments = parse_arguments()
    dataset = open_dataset(arguments.data, arguments.split)
    if arguments.sequence is not None:
        show_sequence(dataset, arguments.sequence, arguments.tokenizer)
        return 0
    print(*describe(dataset), sep="\n")
    if not arguments.verify:
        return 0
    problems = verify(dataset)
    print(*(problems or ["verified: no damage"]), sep="\n")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
