"""Runs: the documents of one stretch of the corpus, ready to be gathered.

What a selection takes lies scattered over the corpus. So the corpus is read once, and what passes is laid down in runs
of bounded size: in memory as far as that reaches, else on disk, in the order of selection, as uncompressed Arrow files.
A stretch of the order is then a slice of each of these, which is mapped into memory and copied, nothing being parsed.
They take as much disk as the passing texts, for as long as the stage runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from megatron_ext.data.corpus import Chunk, Corpus
from megatron_ext.data.selection.judging import REASONS
from megatron_ext.data.selection.rows import Rows
from megatron_ext.files import replacing


@dataclass(frozen=True)
class ChunkRun:
    """A chunk of the corpus that an index spared being read, in its own order."""

    corpus: Corpus
    chunk: Chunk


Run = Path | pa.RecordBatch | ChunkRun
"""An Arrow file, documents in memory in any order, or what still has to be read."""


@dataclass(frozen=True)
class Runs:
    """All runs of a corpus and the numbers of their rows."""

    runs: list[Run]
    shards: list[list[tuple[int, str]]]
    """Of each run, names of the files that its rows come from, each with the first such row."""
    rows: Rows
    rejected: np.ndarray  # int64 [reasons]: documents that were rejected for what they are
    num_documents: int
    """Documents that were read."""

    def shard_of(self, run: int, row: int) -> str:
        """Name of the file that a document comes from."""
        return [name for first, name in self.shards[run] if first <= row][-1]

    @staticmethod
    def none() -> Runs:
        """No runs."""
        return Runs([], [], Rows.none(), np.zeros(len(REASONS), dtype=np.int64), 0)

    @staticmethod
    def join(parts: Sequence[Runs]) -> Runs:
        """The runs of several parts of a corpus."""
        offsets = np.cumsum([0, *(len(part.runs) for part in parts)])
        rows = [part.rows.with_run_offset(offset) for part, offset in zip(parts, offsets, strict=False)
                if len(part.rows)] or [Rows.none()]
        return Runs([run for part in parts for run in part.runs], [name for part in parts for name in part.shards],
                    Rows.concatenate(rows), sum(part.rejected for part in parts),
                    sum(part.num_documents for part in parts))


@dataclass(frozen=True)
class Piece:
    """Rows of one run."""

    run: Run
    rows: np.ndarray  # int64 [n]
    places: np.ndarray  # int64 [n]: where they stand in the order of selection


def load_runs(paths: Sequence[Path]) -> Runs:
    """What `make_runs` made of each chunk, joined."""
    found = [Runs.none()] if not paths else []
    for path in paths:
        with np.load(path) as file:
            num_runs, read = int(file["num_runs"]), file["read"]
            runs: list[Run] = [run_path(path, number) for number in range(num_runs)]
            found.append(Runs(runs, [[(0, str(file["shard"]))]] * num_runs, Rows.of(file), read[1:], int(read.sum())))
    return Runs.join(found)


def joined_in_memory(runs: Runs) -> Runs:
    """The same with all that memory holds as one run, the last: one place to copy from."""
    held = [number for number, run in enumerate(runs.runs) if isinstance(run, pa.RecordBatch)]
    if len(held) < 2:
        return runs
    on_disk = [number for number in range(len(runs.runs)) if number not in set(held)]
    numbers, offsets = np.empty(len(runs.runs), np.int32), np.zeros(len(runs.runs), np.int32)
    numbers[on_disk], numbers[held] = np.arange(len(on_disk)), len(on_disk)
    offsets[held] = np.cumsum([0, *(len(runs.runs[number]) for number in held[:-1])])
    rows = replace(runs.rows, run=numbers[runs.rows.run], row=runs.rows.row + offsets[runs.rows.run])
    batch = pa.concat_batches([runs.runs[number] for number in held])
    shards = [(int(offsets[number]) + first, name) for number in held for first, name in runs.shards[number]]
    return replace(runs, runs=[*(runs.runs[number] for number in on_disk), batch], rows=rows,
                   shards=[*(runs.shards[number] for number in on_disk), shards])


def plan_pieces(runs: Sequence[Run], rows: Rows, places: np.ndarray) -> list[Piece]:
    """Where the documents at these places lie, one piece a run."""
    by_run = places[np.argsort(rows.run[places], kind="stable")]
    starts = np.flatnonzero(np.diff(rows.run[by_run], prepend=-1))
    return [Piece(runs[rows.run[part[0]]], rows.row[part], part) for part in np.split(by_run, starts[1:]) if len(part)]


def open_run(run: Run, columns: Sequence[str]) -> pa.RecordBatch:
    """The documents of a run; of one on disk, mapped into memory."""
    if isinstance(run, pa.RecordBatch):
        return run.select(columns)
    if isinstance(run, ChunkRun):
        return pa.concat_batches([batch.select(columns) for batch in run.corpus.read(run.chunk)])
    with pa.memory_map(str(run)) as source:
        return pa.ipc.open_file(source).get_batch(0).select(columns)


def write_arrays(path: Path, **arrays: np.ndarray) -> None:
    """Write named arrays (`.npz`) atomically."""
    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **arrays)


def run_path(path: Path, number: int) -> Path:
    """Where the runs of a chunk lie, whose numbers are at `path`."""
    return path.with_name(f"{path.stem}-{number:04d}.arrow")


def write_run(path: Path, batch: pa.RecordBatch) -> None:
    """Write the documents of a run atomically."""
    with replacing(path) as temporary, pa.ipc.new_file(str(temporary), batch.schema) as writer:
        writer.write_batch(batch)
