"""Runs: the documents of one stretch of the corpus, ready to be gathered.

What a selection takes lies scattered over the corpus. So the corpus is read once, and what passes is laid down in runs
of bounded size: in memory as far as that reaches, else on disk, in the order of selection, as uncompressed Arrow files.
A stretch of the order is then a slice of each of these, which is mapped into memory and copied, nothing being parsed.
They take as much disk as the passing texts, for as long as the stage runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from megatron_ext.data.corpus import Chunk, Corpus
from megatron_ext.data.hashing import hash_strings
from megatron_ext.data.selection.judging import PASSED, REASONS, Criteria, judge, judge_scores, judge_texts
from megatron_ext.data.selection.near_duplicates import NearDuplicates, signatures
from megatron_ext.data.selection.rows import Rows, selection_order
from megatron_ext.files import replacing

RUN_BYTES = 64 * 2**20  # of text
Run = Path | pa.RecordBatch
"""An Arrow file, or documents in memory in any order."""


class Memory:
    """How many bytes of runs may still be held in memory; threads share it."""

    def __init__(self, num_bytes: int) -> None:
        self._left = num_bytes
        self._lock = Lock()

    def take(self, num_bytes: int) -> bool:
        """Take so many bytes, if they are left."""
        with self._lock:
            if num_bytes > self._left:
                return False
            self._left -= num_bytes
            return True

    def give_back(self, num_bytes: int) -> None:
        """The reverse."""
        with self._lock:
            self._left += num_bytes


@dataclass(frozen=True)
class RunTask:
    """One chunk of the corpus, and where its runs go."""

    corpus: Corpus
    chunk: Chunk
    criteria: Criteria
    seed: int
    keep_rejected: bool
    near_duplicates: NearDuplicates | None
    path: Path
    """The numbers of its rows, written last; the runs lie beside it."""
    memory: Memory | None = None
    """Where runs go first; None: to disk."""


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


def make_runs(task: RunTask) -> Runs | None:
    """Judge the documents of a chunk and lay down those that pass (and on demand the rejected).

    Returns them if memory holds them all. Else they are on disk, sorted, also for the next start.
    """
    read = np.zeros(1 + len(REASONS), dtype=np.int64)  # documents by code
    rows = [Rows.none(task.near_duplicates.num_bands if task.near_duplicates else 0)]
    runs: list[Run] = []
    for number, (batch, codes) in enumerate(_in_groups(_judged(task, read))):
        rows.append(_rows(batch, codes, task, number))
        is_held = task.memory is not None and task.memory.take(batch.nbytes)
        runs.append(batch if is_held else _lay_down(task, number, batch, rows))
    if task.memory is not None and not any(isinstance(run, Path) for run in runs):
        return Runs(runs, [[(0, task.chunk.name)]] * len(runs), Rows.concatenate(rows), read[1:], int(read.sum()))
    for number, run in enumerate(runs):
        if task.memory is not None and isinstance(run, pa.RecordBatch):
            _lay_down(task, number, run, rows)
            task.memory.give_back(run.nbytes)
    write_arrays(task.path, read=read, num_runs=np.int64(len(runs)), shard=np.array(task.chunk.name),
                 **vars(Rows.concatenate(rows)))
    return None


def _lay_down(task: RunTask, number: int, batch: pa.RecordBatch, rows: list[Rows]) -> Path:
    """Write a run in the order of selection; its rows, after an empty first entry, are put into that order, too."""
    order = selection_order(rows[number + 1])
    rows[number + 1] = replace(rows[number + 1].take(order), row=np.arange(len(batch), dtype=np.int32))
    path = _run_path(task.path, number)
    _write_run(path, batch.take(pa.array(order)))
    return path


def load_runs(paths: Sequence[Path]) -> Runs:
    """What `make_runs` made of each chunk, joined."""
    found = [Runs.none()] if not paths else []
    for path in paths:
        with np.load(path) as file:
            num_runs, read = int(file["num_runs"]), file["read"]
            runs: list[Run] = [_run_path(path, number) for number in range(num_runs)]
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
    with pa.memory_map(str(run)) as source:
        return pa.ipc.open_file(source).get_batch(0).select(columns)


def write_arrays(path: Path, **arrays: np.ndarray) -> None:
    """Write named arrays (`.npz`) atomically."""
    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **arrays)


def _judged(task: RunTask, read: np.ndarray) -> Iterator[tuple[pa.RecordBatch, np.ndarray]]:
    """The documents of a chunk that go into runs, with their codes; counts all of them in `read`."""
    def count(codes: np.ndarray) -> None:
        np.add(read, np.bincount(codes, minlength=len(read)), out=read)

    def keep(scores: pa.RecordBatch) -> np.ndarray:
        codes = judge_scores(scores, task.criteria)
        count(codes[codes != PASSED])
        return codes == PASSED

    keeps_all = task.keep_rejected or task.criteria.rule is None
    for batch in task.corpus.read(task.chunk, None if keeps_all else keep):
        codes = judge(batch, task.criteria) if keeps_all else judge_texts(batch.column("text"), task.criteria)
        count(codes)
        if not task.keep_rejected and codes.any():
            passed = np.flatnonzero(codes == PASSED)
            batch, codes = batch.take(pa.array(passed)), codes[passed]
        yield batch, codes


def _in_groups(batches: Iterator[tuple[pa.RecordBatch, np.ndarray]]) -> Iterator[tuple[pa.RecordBatch, np.ndarray]]:
    """Neighbouring batches joined, until their texts have RUN_BYTES."""
    group: list[tuple[pa.RecordBatch, np.ndarray]] = []
    num_bytes = num_rows = 0
    for batch, codes in batches:
        group.append((batch, codes))
        num_bytes += batch.column("text").nbytes
        num_rows += len(batch)
        if num_bytes >= RUN_BYTES:
            yield _joined(group)
            group, num_bytes, num_rows = [], 0, 0
    if num_rows:
        yield _joined(group)


def _joined(group: list[tuple[pa.RecordBatch, np.ndarray]]) -> tuple[pa.RecordBatch, np.ndarray]:
    return pa.concat_batches([batch for batch, _ in group]), np.concatenate([codes for _, codes in group])


def _rows(batch: pa.RecordBatch, codes: np.ndarray, task: RunTask, number: int) -> Rows:
    """The numbers of a run's documents, before they are sorted."""
    texts = batch.column("text")
    num_bytes = pc.fill_null(pc.binary_length(texts), 0).to_numpy(zero_copy_only=False).astype(np.int32)
    bands = signatures(texts, task.near_duplicates) if task.near_duplicates else np.empty((len(batch), 0), np.uint64)
    return Rows(hash_strings(batch.column("id"), task.seed), hash_strings(texts), num_bytes, codes,
                np.full(len(batch), number, dtype=np.int32), np.arange(len(batch), dtype=np.int32), bands)


def _run_path(path: Path, number: int) -> Path:
    return path.with_name(f"{path.stem}-{number:04d}.arrow")


def _write_run(path: Path, batch: pa.RecordBatch) -> None:
    with replacing(path) as temporary, pa.ipc.new_file(str(temporary), batch.schema) as writer:
        writer.write_batch(batch)
