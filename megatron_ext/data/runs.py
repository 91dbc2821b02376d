"""Sorted runs: tokenized documents of a selection on disk, each file in selection order, ready to be merged.

What a selection takes lies scattered over the corpus. A run gathers what one stretch of the corpus holds of it, bounded
in bytes, so that memory does not grow with the corpus; merging the runs then reads each of them from front to back.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from megatron_ext.data.candidates import Candidates
from megatron_ext.data.corpus import Chunk, Corpus
from megatron_ext.data.documents import write_parquet
from megatron_ext.data.tokenizers import EncoderName, load_tokenizer

_RUN_BYTES = 8 * 2**20
_MAX_RUNS = 256  # that are merged, hence open, at once
_ROW_GROUP_ROWS = 128


class TokenizerChoice(Protocol):
    """The settings that say how to count tokens."""

    tokenizer: Path
    encoder: EncoderName


@dataclass(frozen=True)
class Pick:
    """Documents to take from one chunk."""

    chunk: Chunk
    rows: np.ndarray  # int64 [n], ascending: places in the chunk
    ranks: np.ndarray  # int64 [n]: places in the order of selection


@dataclass(frozen=True)
class RunTask:
    """One run to make."""

    corpus: Corpus
    tokenizer: Path
    encoder: EncoderName
    picks: tuple[Pick, ...]
    path: Path


def plan_runs(folder: Path, choice: TokenizerChoice, corpus: Corpus, chunks: Sequence[Chunk], candidates: Candidates,
              ranks: range) -> list[RunTask]:
    """The runs that hold the candidates of these ranks, in the order of the corpus."""
    folder.mkdir(parents=True, exist_ok=True)
    chosen = np.arange(ranks.start, ranks.stop)
    chosen = chosen[np.lexsort((candidates.row[chosen], candidates.chunk[chosen]))]
    byte_ends = np.cumsum(candidates.num_bytes[chosen])
    run_bytes = max(_RUN_BYTES, int(byte_ends[-1]) // _MAX_RUNS)
    run_starts = np.flatnonzero(np.diff(byte_ends // run_bytes, prepend=-1))
    return [
        RunTask(corpus, choice.tokenizer, choice.encoder, tuple(_picks(part, chunks, candidates)),
                folder / f"{number:06d}.parquet")
        for number, part in enumerate(np.split(chosen, run_starts[1:]))
    ]


def make_run(task: RunTask) -> int:
    """Read, tokenize, sort and write the documents of one run. Returns their tokens."""
    encoder = load_tokenizer(task.tokenizer, task.encoder).encoder
    batches = []
    for pick in task.picks:
        for batch, ranks in _picked(task.corpus, pick):
            lengths = encoder.encode(batch.column("text")).lengths
            batches.append(batch.append_column("num_tokens", pa.array(lengths)).append_column("rank", pa.array(ranks)))
    table = pa.Table.from_batches(batches)
    order = pc.sort_indices(table, sort_keys=[("rank", "ascending")])
    write_parquet(task.path, table.take(order), row_group_rows=_ROW_GROUP_ROWS)
    return int(pc.sum(table["num_tokens"]).as_py())


def run_tokens(runs: Sequence[Path], ranks: range) -> np.ndarray:
    """The tokens of the documents of these ranks, int64 `[len(ranks)]`."""
    num_tokens = np.full(len(ranks), -1, dtype=np.int64)
    for run in runs:
        table = pq.read_table(run, columns=["rank", "num_tokens"])
        num_tokens[table["rank"].to_numpy() - ranks.start] = table["num_tokens"].to_numpy()
    assert (num_tokens >= 0).all(), "a candidate is in no run"
    return num_tokens


def _picks(chosen: np.ndarray, chunks: Sequence[Chunk], candidates: Candidates) -> Iterator[Pick]:
    chunk_starts = np.flatnonzero(np.diff(candidates.chunk[chosen], prepend=-1))
    for ranks in np.split(chosen, chunk_starts[1:]):
        yield Pick(chunks[candidates.chunk[ranks[0]]], candidates.row[ranks], ranks)


def _picked(corpus: Corpus, pick: Pick) -> Iterator[tuple[pa.RecordBatch, np.ndarray]]:
    """The wanted rows of each batch of a chunk, and their ranks."""
    first_row = 0
    for batch in corpus.read(pick.chunk):
        start, stop = np.searchsorted(pick.rows, [first_row, first_row + len(batch)])
        if stop > start:
            yield batch.take(pa.array(pick.rows[start:stop] - first_row)), pick.ranks[start:stop]
        first_row += len(batch)
        if stop == len(pick.rows):
            return
