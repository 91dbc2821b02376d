"""Gathering documents from runs into the `part-*.parquet` files of an artifact, in the order of selection."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from megatron_ext.data.documents import (
    MAX_PART_BYTES,
    MAX_PART_ROWS,
    ROW_GROUP_ROWS,
    read_document_batches,
    write_row_groups,
)
from megatron_ext.data.selection.judging import REASONS
from megatron_ext.data.selection.rows import Rows
from megatron_ext.data.selection.runs import Piece, Run, open_run, plan_pieces
from megatron_ext.data.workers import Workers
from megatron_ext.progress import Progress


@dataclass(frozen=True)
class GatherTask:
    """One file to write."""

    pieces: tuple[Piece, ...]
    column: pa.Array
    """What was decided of its documents, in order."""
    schema: pa.Schema
    path: Path


def gather_documents(folder: Path, runs: Sequence[Run], rows: Rows, places: np.ndarray, num_tokens: np.ndarray | None,
                     schema: pa.Schema, workers: Workers) -> None:
    """Write the documents at these places as a documents folder of this schema (see `data.documents`).

    Args:
        num_tokens: int64 `[len(places)]`; None: not counted, the column is null.
    """
    column = pa.nulls(len(places), pa.int64()) if num_tokens is None else pa.array(num_tokens, pa.int64())
    _gather(folder, runs, rows, places, column, schema, workers, "write")


def gather_rejected(folder: Path, runs: Sequence[Run], rows: Rows, places: np.ndarray, codes: np.ndarray,
                    schema: pa.Schema, workers: Workers) -> None:
    """Write the documents at these places with the column `reason` instead of `num_tokens`."""
    schema = pa.schema([pa.field("reason", pa.string()) if field.name == "num_tokens" else field for field in schema])
    reasons = pa.array(REASONS).take(pa.array(codes.astype(np.int64) - 1))
    _gather(folder, runs, rows, places, reasons, schema, workers, "write the rejected")


def mean_scores(artifact: Path, score_names: Sequence[str]) -> dict[str, float | None]:
    """The mean of each score over the documents of an artifact where it is finite; None without any."""
    sums, counts = dict.fromkeys(score_names, 0.0), dict.fromkeys(score_names, 0)
    for batch in read_document_batches(artifact, score_names) if score_names else ():
        for name in score_names:
            values = pc.drop_null(batch.column(name)).to_numpy(zero_copy_only=False)
            values = values[np.isfinite(values)]
            sums[name] += math.fsum(values)  # numpy's sum depends on the processor in its last bit
            counts[name] += len(values)
    return {name: sums[name] / counts[name] if counts[name] else None for name in score_names}


def _gather(folder: Path, runs: Sequence[Run], rows: Rows, places: np.ndarray, column: pa.Array, schema: pa.Schema,
            workers: Workers, label: str) -> None:
    """`folder/part-*.parquet`; parts that are there already are not written again."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = {folder / f"part-{number:05d}.parquet": bounds
             for number, bounds in enumerate(_part_bounds(rows.num_bytes[places]))}
    missing = {path: bounds for path, bounds in parts.items() if not path.exists()}
    progress = Progress(label, len(parts), "parts", rate_unit="documents", already_done=len(parts) - len(missing))
    tasks = (GatherTask(tuple(plan_pieces(runs, rows, places[start:stop])), column.slice(start, stop - start), schema,
                        path) for path, (start, stop) in missing.items())
    for num_documents in workers.map_in_order(write_part, tasks, in_threads=True):
        progress.advance(1, num_documents)


def write_part(task: GatherTask) -> int:
    """Write one file. Returns the number of its documents."""
    write_row_groups(task.path, task.schema, _row_groups(task))
    return len(task.column)


def _row_groups(task: GatherTask) -> Iterator[pa.Table]:
    """The documents of a task in order, a row group at a time."""
    if not task.pieces:
        return
    decided = next(name for name in task.schema.names if name in ("num_tokens", "reason"))
    names = [name for name in task.schema.names if name != decided]
    if len(task.pieces) == 1 and isinstance(task.pieces[0].run, pa.RecordBatch):
        found, order = task.pieces[0].run.select(names), task.pieces[0].rows  # all in memory: copied once
    else:
        found, order = _collected(task.pieces, names)
    for start in range(0, len(order), ROW_GROUP_ROWS):
        rows = found.take(pa.array(order[start:start + ROW_GROUP_ROWS]))
        values = dict(zip(names, rows.columns, strict=True))
        values[decided] = task.column.slice(start, ROW_GROUP_ROWS)
        yield pa.table([values[name] for name in task.schema.names], schema=task.schema)


def _collected(pieces: Sequence[Piece], names: Sequence[str]) -> tuple[pa.RecordBatch, np.ndarray]:
    """The documents of some pieces, and their rows in the order of selection."""
    # Copied run after run: the pages of all runs, were they mapped at once, would count as this process's memory.
    found = pa.concat_batches([open_run(piece.run, names).take(pa.array(piece.rows)) for piece in pieces])
    return found, np.argsort(np.concatenate([piece.places for piece in pieces]))


def _part_bounds(num_bytes: np.ndarray) -> Iterator[tuple[int, int]]:
    """Where parts begin and end, by rows and bytes of text alone; of no rows, one part."""
    ends = np.cumsum(num_bytes, dtype=np.int64)
    start = 0
    while start < len(ends) or start == 0:
        before = int(ends[start - 1]) if start else 0
        full = int(np.searchsorted(ends, before + MAX_PART_BYTES)) + 1
        stop = min(full, start + MAX_PART_ROWS, len(ends))
        yield start, stop
        if stop == len(ends):
            return
        start = stop
