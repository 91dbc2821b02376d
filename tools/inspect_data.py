"""Look into tokenized data: counts, lengths, the text of a document and where it comes from, damage, differences.

    python -m tools.inspect_data work/tokens
    python -m tools.inspect_data work/tokens --split valid --document 7 --tokenizer models/tinyllama
    python -m tools.inspect_data work/tokens --verify
    python -m tools.inspect_data work/tokens --compare other/tokens
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from megatron_ext.data.dataset_comparison import first_difference
from megatron_ext.data.inspection import (
    Dataset,
    decode_sequence,
    describe,
    document_record,
    document_sequences,
    open_dataset,
    sequence_record,
    verify,
)
from megatron_ext.errors import UserError, exit_on_user_error


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="tokenized artifact, or path of a dataset without .bin/.idx")
    parser.add_argument("--split", default="train", help="split of the artifact: train or valid")
    shown = parser.add_mutually_exclusive_group()
    shown.add_argument("--document", type=int, help="show this document, counted from 0 with the empty ones")
    shown.add_argument("--sequence", type=int, help="show this sequence, counted from 0 (empty documents have none)")
    shown.add_argument("--compare", type=Path, metavar="OTHER", help="say where OTHER differs first")
    parser.add_argument("--tokenizer", type=Path, help="tokenizer folder, needed for the text of a sequence")
    parser.add_argument("--verify", action="store_true", help="recompute every hash")
    return parser.parse_args()


def show_document(dataset: Dataset, document: int, tokenizer: Path) -> None:
    """Print where a document comes from, and its text."""
    sequences = document_sequences(dataset, document)
    print_record(document_record(dataset, document))
    for sequence in sequences:
        print(decode_sequence(dataset, sequence, tokenizer))
    if not sequences:
        print("an empty document: it has no sequence")


def show_sequence(dataset: Dataset, sequence: int, tokenizer: Path) -> None:
    """Print where a sequence comes from, and its text."""
    text = decode_sequence(dataset, sequence, tokenizer)
    print_record(sequence_record(dataset, sequence))
    print(text)


def print_record(record: dict[str, Any]) -> None:
    """A line for each thing that is known of a document."""
    for name, value in record.items():
        if value is not None:
            print(f"{name}: {value}")


def compare(dataset: Dataset, other: Dataset) -> int:
    """Say where two datasets differ first; 1 when they do."""
    difference = first_difference(dataset, other)
    print(difference or f"{dataset.reader.prefix} and {other.reader.prefix} hold the same documents")
    return 1 if difference else 0


@exit_on_user_error
def main() -> int:
    """Show what was asked for; exit code 1 when --verify finds a fault or --compare a difference."""
    arguments = parse_arguments()
    dataset = open_dataset(arguments.data, arguments.split)
    if arguments.compare is not None:
        return compare(dataset, open_dataset(arguments.compare, arguments.split))
    if arguments.document is not None or arguments.sequence is not None:
        if arguments.tokenizer is None:
            raise UserError("--document and --sequence need --tokenizer, the folder of the tokenizer that the data was "
                            "made with")
        if arguments.document is not None:
            show_document(dataset, arguments.document, arguments.tokenizer)
        else:
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
