"""Batches of raw rows of a chunk of a shard: row groups of a Parquet file, a byte range of JSON lines, a whole file."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from megatron_ext.data.columns import (
    Kind,
    array_of,
    column_of,
    column_to_read,
    has_column,
    look_up,
    names_in,
    names_of,
)
from megatron_ext.data.shards import format_of, split_compression
from megatron_ext.data.streams import DAMAGE, Location, is_damage, json_values, open_bytes, open_file
from megatron_ext.errors import UserError

BATCH_ROWS = 1_024
_BATCH_BYTES = 4 * 2**20
_SAMPLED_ROWS = 100
Column = tuple[str, Kind]
"""A column of the shards, and what its values are read as."""


@dataclass(frozen=True)
class Chunk:
    """A piece of one shard: row groups `start` to `end` of a Parquet file, or bytes `start` to `end` of JSON lines.

    Any other file is one chunk (`end` None).
    """

    path: Location
    start: int
    end: int | None

    @property
    def name(self) -> str:
        """The shard's name."""
        return str(self.path).rsplit("/", 1)[-1]


@dataclass(frozen=True)
class RawBatch:
    """Neighbouring rows as their file has them (Parquet) or as their kinds need them (JSON)."""

    arrays: dict[str, pa.Array]
    """By the names that the reader gave; without those that the shard lacks."""
    num_rows: int
    place_of: Callable[[int], str]
    """Where a row is, for messages."""

    def filter(self, mask: np.ndarray) -> RawBatch:
        """The rows where the mask, bool `[num_rows]`, is true."""
        if mask.all():
            return self
        rows = np.flatnonzero(mask)
        wanted = pa.array(rows)
        return RawBatch({name: array.take(wanted) for name, array in self.arrays.items()}, len(rows),
                        lambda row: self.place_of(int(rows[row])))


def read_batches(chunk: Chunk, columns: Mapping[str, Column], skip: int = 0,
                 on_read: Callable[[int], None] | None = None) -> Iterator[RawBatch]:
    """The rows of a chunk in batches of about 4 MiB, at most 1,024 rows.

    Args:
        columns: name in the batches -> column of the shard.
        skip: rows at the beginning to leave out, of JSON.
        on_read: is told how many bytes of a JSON file were read, as it goes on.

    Raises UserError for a damaged file and, of JSON, for values that are not what their columns need.
    """
    if format_of(chunk.path) == "parquet":
        assert not skip, "Parquet is read by row groups"
        return _read_parquet(chunk, columns)
    return _read_json(chunk, columns, skip, on_read)


def split(shard: Location, chunk_bytes: int) -> Iterator[Chunk]:
    """The chunks of a shard, of about so many bytes where it can be split."""
    if format_of(shard) == "parquet":
        with open_parquet(shard) as file:
            sizes = [file.metadata.row_group(i).total_byte_size for i in range(file.num_row_groups)]
        yield from _groups_of(sizes, shard, chunk_bytes)
    elif isinstance(shard, Path) and format_of(shard) == "lines" and not split_compression(shard)[1]:
        size = shard.stat().st_size
        yield from (Chunk(shard, start, min(start + chunk_bytes, size)) for start in range(0, size, chunk_bytes))
    else:
        yield Chunk(shard, 0, None)


def _groups_of(sizes: Sequence[int], shard: Location, chunk_bytes: int) -> Iterator[Chunk]:
    start = total = 0
    for i, size in enumerate(sizes):
        total += size
        if total >= chunk_bytes or i == len(sizes) - 1:
            yield Chunk(shard, start, i + 1)
            start, total = i + 1, 0


@dataclass(frozen=True)
class Present:
    """The columns that a shard is known to have."""

    columns: list[str]
    missing: set[str]
    """Of those that are looked for."""
    is_empty: bool = False


def present_columns(shard: Location, wanted: Iterable[str], sought_rows: int | None = _SAMPLED_ROWS) -> Present:
    """Which columns a shard has: a Parquet file by its schema, JSON by its first rows (None: all, until all are
    found).
    """
    wanted = set(wanted)
    if format_of(shard) == "parquet":
        with open_parquet(shard) as file:
            fields, num_rows = list(file.schema_arrow), file.metadata.num_rows
        missing = {name for name in wanted if not has_column(fields, name)}
        return Present(names_of(fields), missing, is_empty=num_rows == 0)
    names: dict[str, None] = {}
    is_empty = True
    for _, _, row in islice(_json_rows(Chunk(shard, 0, None)), sought_rows):
        is_empty = False
        names |= dict.fromkeys(names_in(row))
        wanted = {name for name in wanted if look_up(row, name) is None and not _has_null(row, name)}
        if not wanted:
            break
    return Present(list(names), wanted, is_empty)


def _has_null(row: Mapping[str, Any], column: str) -> bool:
    return column in names_in(row)


# ---- Parquet


@contextmanager
def open_parquet(location: Location) -> Iterator[pq.ParquetFile]:
    """A Parquet file. Raises UserError for what is none."""
    with open_file(location) as stream:
        try:
            file = pq.ParquetFile(location if isinstance(location, Path) else stream, buffer_size=2**20)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise UserError(f"{location} cannot be read as Parquet: {error}") from None
        with file:
            yield file


def _read_parquet(chunk: Chunk, columns: Mapping[str, Column]) -> Iterator[RawBatch]:
    with open_parquet(chunk.path) as file:
        schema, metadata = file.schema_arrow, file.metadata
        present = {name: column for name, (column, _) in columns.items() if has_column(list(schema), column)}
        try:
            wanted = list(dict.fromkeys(column_to_read(schema, column) for column in present.values()))
        except UserError as error:
            raise UserError(f"{chunk.path} {error}") from None
        groups = list(range(chunk.start, chunk.end or 0))
        row = sum(metadata.row_group(group).num_rows for group in range(chunk.start))
        try:
            for batch in file.iter_batches(_batch_rows(metadata, groups), row_groups=groups, columns=wanted,
                                           use_threads=False):
                arrays = {name: column_of(batch, column) for name, column in present.items()}
                yield RawBatch(arrays, len(batch), partial(_parquet_place, chunk.path, row, arrays.get("id")))
                row += len(batch)
        except (OSError, pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            if not is_damage(error):
                raise
            raise UserError(f"{chunk.path} is damaged, or of a kind that cannot be read: {error}") from None


def _parquet_place(path: Location, first_row: int, ids: pa.Array | None, row: int) -> str:
    told = f", id {ids[row].as_py()!r}" if ids is not None else ""
    return f"{path}, row {first_row + row:,} (counted from 0){told}"


def _batch_rows(metadata: pq.FileMetaData, groups: Sequence[int]) -> int:
    """How many rows make a batch of about _BATCH_BYTES: documents may be short or whole books."""
    num_rows = sum(metadata.row_group(group).num_rows for group in groups)
    num_bytes = sum(metadata.row_group(group).total_byte_size for group in groups)
    return min(max(1, _BATCH_BYTES * num_rows // max(1, num_bytes)), BATCH_ROWS)


# ---- JSON


def _read_json(chunk: Chunk, columns: Mapping[str, Column], skip: int,
               on_read: Callable[[int], None] | None) -> Iterator[RawBatch]:
    rows: list[dict[str, Any]] = []
    places: list[int] = []
    num_bytes = 0
    for place, size, row in _json_rows(chunk, skip, on_read):
        rows.append(row)
        places.append(place)
        num_bytes += size
        if len(rows) >= BATCH_ROWS or num_bytes >= _BATCH_BYTES:
            yield _json_batch(rows, places, columns, chunk)
            rows, places, num_bytes = [], [], 0
    if rows:
        yield _json_batch(rows, places, columns, chunk)


def _json_batch(rows: list[dict[str, Any]], places: list[int], columns: Mapping[str, Column],
                chunk: Chunk) -> RawBatch:
    def place_of(row: int) -> str:
        name = look_up(rows[row], columns["id"][0]) if "id" in columns else None
        told = f", id {name!r}" if name is not None else ""
        return f"{_json_place(chunk, places[row])}{told}"

    arrays = {name: array_of([look_up(row, column) for row in rows], kind, column, place_of)
              for name, (column, kind) in columns.items()}
    return RawBatch(arrays, len(rows), place_of)


def _json_rows(chunk: Chunk, skip: int = 0,
               on_read: Callable[[int], None] | None = None) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """(offset of its line, or number of the value; bytes; the object) of the documents of a chunk."""
    with open_bytes(chunk.path, on_read) as stream:
        if format_of(chunk.path) == "json":
            found = islice(json_values(stream, chunk.path), skip, None)
        else:
            found = _parsed(islice(_lines(stream, chunk), skip, None), chunk)
        for place, size, row in found:
            if not isinstance(row, dict):
                raise UserError(f"{_json_place(chunk, place)} is not a JSON object but {type(row).__name__}")
            yield place, size, row


def _lines(stream: io.BufferedReader, chunk: Chunk) -> Iterator[tuple[int, bytes]]:
    """(byte offset, line) of the lines that start inside a chunk and are not blank."""
    position = 0
    if chunk.start:  # the line under way at `start` belongs to the chunk before
        stream.seek(chunk.start - 1)
        position = chunk.start - 1 + len(stream.readline())
    while chunk.end is None or position < chunk.end:
        try:
            line = stream.readline()
        except DAMAGE as error:
            if not is_damage(error):
                raise
            raise UserError(f"{chunk.path} is damaged or cut off: {error}") from None
        if not line:
            return
        if not line.isspace():
            yield position, line
        position += len(line)


def _parsed(lines: Iterable[tuple[int, bytes]], chunk: Chunk) -> Iterator[tuple[int, int, Any]]:
    """(byte offset, bytes, value) of lines."""
    for offset, line in lines:
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{_json_place(chunk, offset)} is not JSON: {error}") from None
        yield offset, len(line), value


def _json_place(chunk: Chunk, place: int) -> str:
    if format_of(chunk.path) == "json":
        return f"{chunk.path}, value {place:,} (counted from 0)"
    return f"{chunk.path}, line {_line_number(chunk.path, place):,} (at byte {place:,})"


def _line_number(path: Location, offset: int) -> int:
    """Counted from 1; reads the file up to there, which only a message is worth."""
    number = 1
    with open_bytes(path) as stream:
        while offset > 0 and (block := stream.read(min(offset, 2**20))):
            number += block.count(b"\n")
            offset -= len(block)
    return number
