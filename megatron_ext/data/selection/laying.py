"""Laying down runs: the corpus is read once, chunk by chunk, judged, and what passes is kept ready to be gathered.

What an index spares is read later, if it is wanted at all: documents that are chosen or have to be measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from megatron_ext.data.corpus import Chunk, Corpus, Keep
from megatron_ext.data.hashing import hash_strings
from megatron_ext.data.selection.begun import Laid
from megatron_ext.data.selection.index import numbers_of, write_index
from megatron_ext.data.selection.judging import PASSED, Criteria, judge, judge_scores, judge_texts
from megatron_ext.data.selection.near_duplicates import NearDuplicates, signatures
from megatron_ext.data.selection.rows import Rows, selection_order
from megatron_ext.data.selection.runs import ChunkRun, Runs, plan_pieces, run_path, write_arrays, write_run
from megatron_ext.data.shards import format_of
from megatron_ext.data.workers import Workers
from megatron_ext.progress import ByteProgress, Progress

RUN_BYTES = 64 * 2**20  # of text
_SOURCE = "source"
_TOLD_BYTES = 64 * 2**20


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
    number: int = 0
    """Number of the chunk."""
    index: Path | None = None
    """Where to keep the numbers of all documents of the chunk (`index`)."""

    @property
    def is_file(self) -> bool:
        """Whether the chunk is a whole file, however large."""
        return self.chunk.end is None


def make_runs(task: RunTask) -> Runs | None:
    """Judge the documents of a chunk and lay down those that pass (and on demand the rejected).

    Returns them if memory holds them all. Else they are on disk, sorted, also for the next start.
    """
    laid = Laid([Rows.none(task.near_duplicates.num_bands if task.near_duplicates else 0)])
    if task.is_file:
        laid.go_on(task.path)
        if laid.runs:
            print(f"read {task.chunk.name}: {laid.num_read:,} documents were read before, going on", flush=True)
    for batch, codes in _in_groups(_judged(task, laid)):
        _lay(task, laid, batch, codes)
    if task.memory is not None and not any(isinstance(run, Path) for run in laid.runs):
        return Runs(laid.runs, [[(0, task.chunk.name)]] * len(laid.runs), Rows.concatenate(laid.rows), laid.read[1:],
                    laid.num_read)
    for number, run in enumerate(laid.runs):
        if task.memory is not None and isinstance(run, pa.RecordBatch):
            _write_sorted(task, number, run, laid.rows)
            task.memory.give_back(run.nbytes)
    write_arrays(task.path, read=laid.read, num_runs=np.int64(len(laid.runs)), shard=np.array(task.chunk.name),
                 **vars(Rows.concatenate(laid.rows)))
    return None


def _lay(task: RunTask, laid: Laid, batch: pa.RecordBatch, codes: np.ndarray) -> None:
    """Make a run of these documents, in memory or on disk."""
    number = len(laid.runs)
    laid.rows.append(_rows(batch, codes, task, number))
    is_held = task.memory is not None and task.memory.take(batch.nbytes)
    laid.runs.append(batch if is_held else _write_sorted(task, number, batch, laid.rows))
    if task.is_file:
        laid.note(task.path)


def _write_sorted(task: RunTask, number: int, batch: pa.RecordBatch, rows: list[Rows]) -> Path:
    """Write a run in the order of selection; its rows, after an empty first entry, are put into that order, too."""
    order = selection_order(rows[number + 1])
    rows[number + 1] = replace(rows[number + 1].take(order), row=np.arange(len(batch), dtype=np.int32))
    path = run_path(task.path, number)
    write_run(path, batch.take(pa.array(order)))
    return path


def _judged(task: RunTask, laid: Laid) -> Iterator[tuple[pa.RecordBatch, np.ndarray]]:
    """The documents of a chunk that go into further runs, with their codes; counts all that are read."""
    def count(codes: np.ndarray) -> None:
        laid.read += np.bincount(codes, minlength=len(laid.read))

    def keep(scores: pa.RecordBatch) -> np.ndarray:
        codes = judge_scores(scores, task.criteria)
        count(codes[codes != PASSED])
        return codes == PASSED

    keeps_all = task.keep_rejected or task.criteria.rule is None or task.index is not None
    for batch in _numbered(task, laid, None if keeps_all else keep):
        codes = judge(batch, task.criteria) if keeps_all else judge_texts(batch.column("text"), task.criteria)
        count(codes)
        if not task.keep_rejected and codes.any():
            passed = np.flatnonzero(codes == PASSED)
            batch, codes = batch.take(pa.array(passed)), codes[passed]
        yield batch, codes


def _numbered(task: RunTask, laid: Laid, keep: Keep | None) -> Iterator[pa.RecordBatch]:
    """The further documents of a chunk; where an index is kept, it is made on the way, and they get the column
    `source`.
    """
    first = laid.num_read
    batches = task.corpus.read(task.chunk, keep, skip=first, on_read=_progress(task))
    if task.index is None:
        yield from batches
        return
    names = [*task.corpus.score_columns, *task.corpus.label_columns]
    for batch in batches:
        laid.numbers.append(numbers_of(batch, task.seed, names))
        yield batch.append_column(_SOURCE, pa.array(np.arange(first, first + len(batch), dtype=np.int32)))
        first += len(batch)
    write_index(task.index, laid.numbers)


def _progress(task: RunTask) -> Callable[[int], None] | None:
    """Tells how far a large file was read that is one chunk."""
    path = task.chunk.path
    if not task.is_file or not isinstance(path, Path) or path.stat().st_size < _TOLD_BYTES:
        return None
    return ByteProgress(f"read {task.chunk.name}", path.stat().st_size).advance


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
                np.full(len(batch), number, dtype=np.int32), np.arange(len(batch), dtype=np.int32), bands,
                np.full(len(batch), task.number, dtype=np.int32), _sources(batch))


def _sources(batch: pa.RecordBatch) -> np.ndarray:
    if _SOURCE not in batch.schema.names:
        return np.zeros(len(batch), dtype=np.int32)
    return batch.column(_SOURCE).to_numpy()


@dataclass(frozen=True)
class LayTask:
    """Documents of a chunk that were not laid down yet, and where they go."""

    run: ChunkRun
    rows: np.ndarray  # int32 [n]: their numbers in the chunk, in the order of selection
    path: Path


def read_by_threads(chunks: Iterable[Chunk]) -> bool:
    """Whether reading hardly needs Python, which one thread at a time can use: tables do not, JSON does."""
    return all(format_of(chunk.path) == "parquet" for chunk in chunks)


def lay_down(task: LayTask) -> None:
    """Write a run of some documents of a chunk, in the order of selection."""
    wanted = np.zeros(int(task.rows.max()) + 1, dtype=bool)
    wanted[task.rows] = True
    batches = [batch for batch in task.run.corpus.read(task.run.chunk, rows=wanted) if len(batch)]
    place_of = np.cumsum(wanted) - 1
    write_run(task.path, pa.concat_batches(batches).take(pa.array(place_of[task.rows])))


def laid_down(runs: Runs, rows: Rows, places: np.ndarray, folder: Path, workers: Workers) -> tuple[Runs, Rows]:
    """The same with the documents at these places in runs, of chunks that were not read so far."""
    is_unread = np.array([isinstance(run, ChunkRun) for run in runs.runs], dtype=bool)
    unread = places[is_unread[rows.run[places]]] if len(runs.runs) else places[:0]
    if not len(unread):
        return runs, rows
    folder.mkdir(parents=True, exist_ok=True)
    run, row = rows.run.copy(), rows.row.copy()
    tasks = []
    for number, piece in enumerate(plan_pieces(runs.runs, rows, unread), start=len(runs.runs)):
        name = xxhash.xxh3_64_hexdigest(piece.rows.tobytes())
        tasks.append(LayTask(piece.run, piece.rows, folder / f"{rows.run[piece.places[0]]:06d}-{name}.arrow"))
        run[piece.places], row[piece.places] = number, np.arange(len(piece.places))
    missing = [task for task in tasks if not task.path.exists()]
    progress = Progress("read what is known", len(tasks), "chunks", already_done=len(tasks) - len(missing))
    for _ in workers.map_in_order(lay_down, missing, in_threads=read_by_threads(task.run.chunk for task in tasks)):
        progress.advance()
    names = [[(0, task.run.chunk.name)] for task in tasks]
    return replace(runs, runs=[*runs.runs, *(task.path for task in tasks)], shards=[*runs.shards, *names]), \
        replace(rows, run=run, row=row)
