"""What was laid down of a chunk that is a whole file, kept while the file is read.

A compressed file can only be read from its beginning and may take hours. So with each of its runs that is on disk, the
numbers of its documents and how far the file was read are written down; who comes after an interruption skips those
documents unparsed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import numpy as np
import pyarrow as pa

from megatron_ext.data.selection.index import read_index, write_index
from megatron_ext.data.selection.judging import REASONS
from megatron_ext.data.selection.rows import Rows
from megatron_ext.data.selection.runs import Run, run_path, write_arrays

BEGUN = "begun"
"""Folder below that of the runs; needless when all chunks are done."""


@dataclass
class Laid:
    """What was laid down of a chunk so far."""

    rows: list[Rows]
    """No documents, then those of each run."""
    runs: list[Run] = field(default_factory=list)
    read: np.ndarray = field(default_factory=lambda: np.zeros(1 + len(REASONS), dtype=np.int64))
    """Documents that were read, by code, int64 `[1 + reasons]`."""
    numbers: list[pa.RecordBatch] = field(default_factory=list)
    """Entries of the chunk's index, where one is kept."""
    num_noted: int = 0
    """Of these, how many are on disk."""

    @property
    def num_read(self) -> int:
        """Documents that were read."""
        return int(self.read.sum())

    def note(self, path: Path) -> None:
        """Write down what came with the last run of the chunk whose numbers go to `path`."""
        noted = _note_path(path, len(self.runs) - 1)
        noted.parent.mkdir(exist_ok=True)
        write_index(noted.with_suffix(".arrow"), self.numbers[self.num_noted:])
        self.num_noted = len(self.numbers)
        write_arrays(noted, read=self.read, **vars(self.rows[-1]))  # last: with it, the run counts

    def go_on(self, path: Path) -> None:
        """Take up what was noted."""
        for number in count():
            noted = _note_path(path, number)
            if not noted.exists():
                return
            with np.load(noted) as file:
                self.read = file["read"]
                self.rows.append(Rows.of(file))
            self.runs.append(run_path(path, number))
            self.numbers += _entries(noted.with_suffix(".arrow"))
            self.num_noted = len(self.numbers)


def _entries(path: Path) -> Sequence[pa.RecordBatch]:
    return [batch for batch in read_index(path).to_batches() if len(batch)]


def _note_path(path: Path, number: int) -> Path:
    return path.parent / BEGUN / f"{path.stem}-{number:06d}.npz"
