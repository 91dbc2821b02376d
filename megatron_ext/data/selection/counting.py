"""Counting the tokens of documents in runs, and looking for test items in them on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from megatron_ext.data.selection.contamination import Hits, load_matcher
from megatron_ext.data.selection.measures import Measured
from megatron_ext.data.selection.rows import Rows
from megatron_ext.data.selection.runs import Piece, Run, open_run, plan_pieces, write_arrays
from megatron_ext.data.tokenizers import EncoderName, load_tokenizer
from megatron_ext.data.workers import Workers
from megatron_ext.progress import Progress

_TASK_BYTES = 16 * 2**20  # of text
_BATCH_ROWS = 256
_FIRST_BYTES_PER_TOKEN = 2.0  # a low guess: the first round then measures, and little is tokenized in vain
_MARGIN = 1.02
_MIN_ROUND_DOCUMENTS = 256


@dataclass(frozen=True)
class Measure:
    """What is measured of each document."""

    tokenizer: Path | None
    """None: no tokens are counted."""
    encoder: EncoderName
    items: Path | None
    """Test items that are looked for."""
    ngram: int
    short_ngram: int
    removes_hits: bool
    """Whether documents that hold a test item are dropped, hence do not count towards a budget."""


@dataclass(frozen=True)
class CountTask:
    """Some documents to measure, and the file for the result."""

    measure: Measure
    pieces: tuple[Piece, ...]
    path: Path


def measure_all(folder: Path, measure: Measure, runs: Sequence[Run], rows: Rows, places: np.ndarray,
                workers: Workers, label: str = "count tokens") -> Measured:
    """Measure the documents at these places; what an earlier call left in `folder` is not done again."""
    if measure.tokenizer is None and measure.items is None:
        return Measured(np.zeros(len(rows), dtype=np.int64))
    folder.mkdir(parents=True, exist_ok=True)
    tasks = [CountTask(measure, tuple(pieces), folder / f"{number:06d}.npz")
             for number, pieces in enumerate(_grouped(plan_pieces(runs, rows, places), rows))]
    missing = [task for task in tasks if not task.path.exists()]
    progress = Progress(label, len(tasks), "tasks", rate_unit="tokens", already_done=len(tasks) - len(missing))
    for num_tokens in workers.map_in_order(measure_pieces, missing):
        progress.advance(1, num_tokens)
    return load_measured([task.path for task in tasks], len(rows))


def measure_up_to(budget_tokens: int, rows: Rows, places: np.ndarray, removes_hits: bool,
                  measure_some: Callable[[np.ndarray, str], Measured]) -> Measured:
    """Measure the documents at these places in order, in rounds, until their tokens reach the budget, or all.

    Args:
        measure_some: measures documents, given their places and what to call it.
    """
    byte_ends = np.cumsum(rows.num_bytes[places], dtype=np.int64)
    measured = Measured(np.full(len(rows), -1, dtype=np.int64))
    bytes_per_token, done, num_rounds, num_tokens = _FIRST_BYTES_PER_TOKEN, 0, 0, 0
    while done < len(places) and num_tokens < budget_tokens:
        wanted = (budget_tokens - num_tokens) * bytes_per_token
        stop = int(np.searchsorted(byte_ends, (byte_ends[done - 1] if done else 0) + wanted)) + 1
        stop = min(max(stop, done + _MIN_ROUND_DOCUMENTS), len(places))
        found = measure_some(places[done:stop], f"count tokens, round {num_rounds + 1}")
        measured.num_tokens[places[done:stop]] = found.num_tokens[places[done:stop]]
        measured.hits = Hits.concatenate([measured.hits, found.hits])
        done, num_rounds = stop, num_rounds + 1
        num_tokens = int(measured.counted_tokens(places[:done], removes_hits).sum())
        bytes_per_token = _MARGIN * int(byte_ends[done - 1]) / max(1, num_tokens)
    return measured


def load_measured(paths: Sequence[Path], num_rows: int) -> Measured:
    """What tasks wrote about documents of `num_rows` in order."""
    measured, hits = Measured(np.full(num_rows, -1, dtype=np.int64)), [Hits.none()]
    for path in paths:
        with np.load(path) as file:
            measured.num_tokens[file["places"]] = file["num_tokens"]
            hits.append(Hits(file["hit_places"], file["hit_items"]))
    measured.hits = Hits.concatenate(hits)
    return measured


def join_measured(parts: Sequence[Measured], orders: Sequence[np.ndarray], order: np.ndarray) -> Measured:
    """What is known of the documents of several parts, by their place in the common order.

    Args:
        orders: of each part, int64 `[n]`: the document (its place in the part's table) at each place of its order.
        order: the same for the parts' tables end to end.
    """
    offsets = np.cumsum([0, *map(len, orders)])
    place_of = np.empty(len(order), dtype=np.int64)
    place_of[order] = np.arange(len(order))
    joined = Measured(np.full(len(order), -1, dtype=np.int64))
    hits = [Hits.none()]
    for part, part_order, offset in zip(parts, orders, offsets, strict=False):
        places = place_of[part_order + offset]
        joined.num_tokens[places] = part.num_tokens
        hits.append(Hits(places[part.hits.documents], part.hits.items))
    joined.hits = Hits.concatenate(hits)
    return joined


def measure_pieces(task: CountTask) -> int:
    """Write tokens and hits of a task's documents. Returns the tokens."""
    places = np.concatenate([piece.places for piece in task.pieces])
    num_tokens, hits, start = np.zeros(len(places), dtype=np.int64), [Hits.none()], 0
    for texts in _texts(task.pieces):
        stop = start + len(texts)
        if task.measure.tokenizer is not None:
            encoder = load_tokenizer(task.measure.tokenizer, task.measure.encoder).encoder
            num_tokens[start:stop] = encoder.encode(texts).lengths
        if task.measure.items is not None:
            matcher = load_matcher(task.measure.items, task.measure.ngram, task.measure.short_ngram)
            found = matcher.find(texts)
            hits.append(Hits(places[start:stop][found.documents], found.items))
        start = stop
    found = Hits.concatenate(hits)
    write_arrays(task.path, places=places, num_tokens=num_tokens, hit_places=found.documents, hit_items=found.items)
    return int(num_tokens.sum())


def _texts(pieces: Sequence[Piece]) -> Iterator[pa.StringArray]:
    for piece in pieces:
        texts = open_run(piece.run, ["text"]).column("text")
        for start in range(0, len(piece.rows), _BATCH_ROWS):
            yield texts.take(pa.array(piece.rows[start:start + _BATCH_ROWS]))


def _grouped(pieces: Sequence[Piece], rows: Rows) -> Iterator[list[Piece]]:
    """Pieces cut and joined to groups of about _TASK_BYTES."""
    group: list[Piece] = []
    size = 0
    for piece in pieces:
        ends = np.cumsum(rows.num_bytes[piece.places], dtype=np.int64)
        cuts = np.flatnonzero(np.diff((size + ends) // _TASK_BYTES)) + 1
        for part_rows, part_places in zip(np.split(piece.rows, cuts), np.split(piece.places, cuts), strict=True):
            group.append(Piece(piece.run, part_rows, part_places))
            size += int(rows.num_bytes[part_places].sum(dtype=np.int64))
            if size >= _TASK_BYTES:
                yield group
                group, size = [], 0
    if group:
        yield group
