"""Gathering documents from runs into the `part-*.parquet` files of an artifact, in the order of selection."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from megatron_ext.data.documents import (
    MAX_PART_BYTES,
    MAX_PART_ROWS,
    document_schema,
    read_document_batches,
    write_parquet,
)
from megatron_ext.data.selection.judging import REASONS
from megatron_ext.data.selection.rows import Rows
from megatron_ext.data.selection.runs import Piece, plan_pieces, read_piece
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


def gather_documents(folder: Path, runs: Sequence[Path], rows: Rows, places: np.ndarray, num_tokens: np.ndarray | None,
                     score_names: Sequence[str], workers: Workers) -> None:
    """Write the documents at these places as a documents folder (see `data.documents`).

    Args:
        num_tokens: int64 `[len(places)]`; None: not counted, the column is null.
    """
    column = pa.nulls(len(places), pa.int64()) if num_tokens is None else pa.array(num_tokens, pa.int64())
    _gather(folder, runs, rows, places, column, document_schema(score_names), workers, "write")


def gather_rejected(folder: Path, runs: Sequence[Path], rows: Rows, places: np.ndarray, codes: np.ndarray,
                    score_names: Sequence[str], workers: Workers) -> None:
    """Write the documents at these places with the column `reason` instead of `num_tokens`."""
    schema = pa.schema([pa.field("reason", pa.string()) if field.name == "num_tokens" else field
                        for field in document_schema(score_names)])
    reasons = pa.array(REASONS).take(pa.array(codes.astype(np.int64) - 1))
    _gather(folder, runs, rows, places, reasons, schema, workers, "write the rejected")


def mean_scores(artifact: Path, score_names: Sequence[str]) -> dict[str, float | None]:
    """The mean of each score over the documents of an artifact that have it; None without any."""
    sums, counts = np.zeros(len(score_names)), np.zeros(len(score_names), dtype=np.int64)
    for batch in read_document_batches(artifact, score_names) if score_names else ():
        scores = [pc.fill_null(batch.column(name), np.nan).to_numpy(zero_copy_only=False) for name in score_names]
        sums += [np.nansum(values) for values in scores]
        counts += [np.sum(~np.isnan(values)) for values in scores]
    return {name: float(total / count) if count else None
            for name, total, count in zip(score_names, sums, counts, strict=True)}


def _gather(folder: Path, runs: Sequence[Path], rows: Rows, places: np.ndarray, column: pa.Array, schema: pa.Schema,
            workers: Workers, label: str) -> None:
    """`folder/part-*.parquet`; parts that are there already are not written again."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = {folder / f"part-{number:05d}.parquet": bounds
             for number, bounds in enumerate(_part_bounds(rows.num_bytes[places]))}
    missing = {path: bounds for path, bounds in parts.items() if not path.exists()}
    progress = Progress(label, len(parts), "parts", rate_unit="documents", already_done=len(parts) - len(missing))
    tasks = (GatherTask(tuple(plan_pieces(runs, rows, places[start:stop])), column.slice(start, stop - start), schema,
                        path) for path, (start, stop) in missing.items())
    write_parts = workers.map_in_order if len(missing) > 1 else map
    for num_documents in write_parts(write_part, tasks):
        progress.advance(1, num_documents)


def write_part(task: GatherTask) -> int:
    """Write one file. Returns the number of its documents."""
    decided = next(name for name in task.schema.names if name in ("num_tokens", "reason"))
    names = [name for name in task.schema.names if name != decided]
    if task.pieces:
        places = np.concatenate([piece.places for piece in task.pieces])
        found = pa.concat_batches([read_piece(piece, names) for piece in task.pieces])
        found = found.take(pa.array(np.argsort(places)))
        table = pa.table({name: task.column if name == decided else found.column(name) for name in task.schema.names},
                         schema=task.schema)
    else:
        table = task.schema.empty_table()
    write_parquet(task.path, table)
    return len(table)


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
