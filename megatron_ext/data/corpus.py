"""Read any corpus: a file or folder of Parquet or JSONL (.gz, .zst) shards, or a documents artifact, in bounded memory.

A corpus is read in chunks: row groups of a Parquet file, a byte range of a JSONL file, a whole compressed file. Chunks
depend on the files alone, so work that is done chunk by chunk is the same for any number of workers.

JSON can hold lone surrogates, which no UTF-8 text can: each becomes U+FFFD.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from megatron_ext.data.documents import CHUNKS, CHUNKS_TYPE, DOCUMENTS_FOLDER, ORIGINAL
from megatron_ext.data.hashing import content_ids
from megatron_ext.errors import UserError

SUFFIXES = (".parquet", ".jsonl", ".jsonl.gz", ".jsonl.zst")
CHUNK_BYTES = 16 * 2**20
_BATCH_ROWS = 1_024
_BATCH_BYTES = 4 * 2**20
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")

Keep = Callable[[pa.RecordBatch], np.ndarray]
"""Scores of rows (float64, by their short names) -> bool `[rows]`."""


@dataclass(frozen=True)
class Chunk:
    """A piece of one shard: row groups `start` to `end` of a Parquet file, or bytes `start` to `end` of a JSONL file.

    A compressed file is one chunk (`end` None).
    """

    path: Path
    start: int
    end: int | None


@dataclass(frozen=True)
class Corpus:
    """A corpus and the columns to read from it."""

    path: Path
    text_column: str = "text"
    id_column: str | None = "id"
    """None: ids are made from the text (equal texts have equal ids), as they are for rows without an id."""
    score_columns: Mapping[str, str] = field(default_factory=dict)
    """Short name -> column."""
    with_chunks: bool = False
    """Read `chunks` as well: of which chunks of its document a rewrite is made; null for what is no rewrite."""

    @property
    def is_documents_artifact(self) -> bool:
        """Whether this is the output of selection or rewriting."""
        return (self.path / DOCUMENTS_FOLDER).is_dir()

    @cached_property
    def _is_made_of_chunks(self) -> bool:
        """Whether the documents come from rewriting."""
        with _open_parquet(self.shards()[0]) as file:
            return CHUNKS in file.schema_arrow.names

    def columns(self) -> dict[str, str]:
        """Name in the batches -> column in the files."""
        if self.is_documents_artifact:
            fixed = {name: name for name in ("id", "document_id", "style", "text")}
            if self.with_chunks and self._is_made_of_chunks:
                fixed[CHUNKS] = CHUNKS
        else:
            fixed = {"id": self.id_column, "text": self.text_column} if self.id_column else {"text": self.text_column}
        return fixed | dict(self.score_columns)

    def shards(self) -> list[Path]:
        """The files, ordered by their path. Raises UserError when there are none."""
        root = self.path / DOCUMENTS_FOLDER if self.is_documents_artifact else self.path
        if root.is_file() and root.name.endswith(SUFFIXES):
            return [root]
        found = [path for path in root.rglob("*") if path.is_file() and path.name.endswith(SUFFIXES)
                 and not any(part.startswith(".") for part in path.relative_to(root).parts)] if root.is_dir() else []
        if not found:
            state = "holds no shards" if root.exists() else "does not exist"
            raise UserError(f"corpus {root} {state}; needed: a file, or a folder of files, named "
                            f"*{', *'.join(SUFFIXES)}")
        return sorted(found, key=lambda path: path.relative_to(root).parts)

    def num_bytes(self) -> int:
        """Size of all shards on disk."""
        return sum(shard.stat().st_size for shard in self.shards())

    def inputs(self) -> dict[str, Path]:
        """What an artifact that is made of the corpus names as its inputs."""
        return {"corpus": self.path}

    def request(self) -> dict[str, Any]:
        """What else says which corpus it is."""
        return {}

    def chunks(self, chunk_bytes: int = CHUNK_BYTES) -> list[Chunk]:
        """All chunks in order, after checking that every shard has the columns.

        Raises UserError when a shard lacks a column (naming those it has) or is damaged.
        """
        shards = self.shards()
        for shard in shards:
            check_columns(shard, self.columns())
        return [chunk for shard in shards for chunk in _split(shard, chunk_bytes)]

    def read(self, chunk: Chunk, keep: Keep | None = None) -> Iterator[pa.RecordBatch]:
        """The rows of a chunk in batches of about 4 MiB, at most 1,024 rows.

        Columns: `id`, `document_id`, `style`, `text` (strings; only `text` may be null), on demand `chunks`, and the
        scores (float64) by their short names. Raises UserError for rows that are not what the columns need.

        Args:
            keep: says by the scores which rows are of interest; the others are dropped without a look at their texts.
        """
        for batch in self.read_columns(chunk):
            if keep is not None:
                batch = batch.filter(pa.array(keep(self._cast(batch, self.score_columns, chunk.path))))
            yield self._complete(self._cast(batch, self.columns(), chunk.path), chunk.path)

    def read_columns(self, chunk: Chunk) -> Iterator[pa.RecordBatch]:
        """The columns of a chunk under the names of the batches, as their file has them."""
        read = _read_parquet if chunk.path.name.endswith(".parquet") else _read_jsonl
        return read(chunk, self.columns())

    def _cast(self, batch: pa.RecordBatch, names: Iterable[str], path: Path) -> pa.RecordBatch:
        """Some columns, with the types they need. Raises UserError where they cannot be."""
        columns = self.columns()
        return pa.record_batch([_cast(batch.column(name), name, columns[name], path) for name in names],
                               names=list(names))

    def _complete(self, batch: pa.RecordBatch, path: Path) -> pa.RecordBatch:
        arrays = dict(zip(batch.schema.names, batch.columns, strict=True))
        if "id" not in arrays:
            arrays["id"] = content_ids(arrays["text"])
        elif arrays["id"].null_count:
            arrays["id"] = pc.coalesce(arrays["id"], content_ids(arrays["text"]))
        for name in ("document_id", "style"):
            if name in arrays and arrays[name].null_count:
                raise UserError(f"{path}: a row has no value in column {self.columns()[name]!r}, which must name it")
        arrays.setdefault("document_id", arrays["id"])
        arrays.setdefault("style", pa.repeat(pa.scalar(ORIGINAL, pa.string()), len(batch)))
        arrays.setdefault(CHUNKS, pa.nulls(len(batch), CHUNKS_TYPE))
        names = ["id", "document_id", "style", "text", *([CHUNKS] if self.with_chunks else []), *self.score_columns]
        return pa.record_batch([arrays[name] for name in names], names=names)


def check_columns(shard: Path, columns: Mapping[str, str]) -> None:
    """Raise UserError when a shard lacks one of the columns; a JSONL shard is judged by its first 100 rows."""
    if shard.name.endswith(".parquet"):
        with _open_parquet(shard) as file:
            present = list(file.schema_arrow.names)
    else:
        rows = [row for _, row in islice(_parse_lines(_lines(Chunk(shard, 0, None)), shard), 100)]
        if not rows:
            return
        present = list(dict.fromkeys(chain.from_iterable(rows)))
    refuse_missing_columns(str(shard), present, columns)


def refuse_missing_columns(place: str, present: Sequence[str], columns: Mapping[str, str]) -> None:
    """Raise UserError when one of the columns is not there; it names those that are."""
    missing = [column for column in columns.values() if column not in present]
    if missing:
        hint = " (id_column=null makes ids from the texts)" if columns.get("id") in missing else ""
        raise UserError(f"{place} has no column {', '.join(map(repr, missing))}; its columns are: {', '.join(present)}"
                        f"{hint}")


def _split(shard: Path, chunk_bytes: int) -> Iterator[Chunk]:
    if shard.name.endswith(".jsonl"):
        size = shard.stat().st_size
        yield from (Chunk(shard, start, min(start + chunk_bytes, size)) for start in range(0, size, chunk_bytes))
    elif shard.name.endswith(".parquet"):
        with _open_parquet(shard) as file:
            sizes = [file.metadata.row_group(i).total_byte_size for i in range(file.num_row_groups)]
        start = total = 0
        for i, size in enumerate(sizes):
            total += size
            if total >= chunk_bytes or i == len(sizes) - 1:
                yield Chunk(shard, start, i + 1)
                start, total = i + 1, 0
    else:
        yield Chunk(shard, 0, None)


def _open_parquet(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path, buffer_size=2**20)
    except pa.ArrowInvalid as error:
        raise UserError(f"{path} cannot be read as Parquet: {error}") from None


def _read_parquet(chunk: Chunk, columns: Mapping[str, str]) -> Iterator[pa.RecordBatch]:
    with _open_parquet(chunk.path) as file:
        groups = list(range(chunk.start, chunk.end or 0))
        wanted = list(dict.fromkeys(columns.values()))
        try:
            for batch in file.iter_batches(_batch_rows(file.metadata, groups), row_groups=groups, columns=wanted,
                                           use_threads=False):
                yield renamed(batch, columns)
        except (OSError, pa.ArrowInvalid) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # the disk's trouble, not the file's
            raise UserError(f"{chunk.path} is damaged: {error}") from None


def _batch_rows(metadata: pq.FileMetaData, groups: Sequence[int]) -> int:
    """How many rows make a batch of about _BATCH_BYTES: documents may be short or whole books."""
    num_rows = sum(metadata.row_group(group).num_rows for group in groups)
    num_bytes = sum(metadata.row_group(group).total_byte_size for group in groups)
    return min(max(1, _BATCH_BYTES * num_rows // max(1, num_bytes)), _BATCH_ROWS)


def renamed(batch: pa.RecordBatch, columns: Mapping[str, str]) -> pa.RecordBatch:
    """The columns under their names in the batches."""
    return pa.record_batch([batch.column(column) for column in columns.values()], names=list(columns))


def _cast(array: pa.Array, name: str, column: str, path: Path) -> pa.Array:
    is_number = pa.types.is_integer(array.type) or pa.types.is_floating(array.type)
    if name == "text" and is_number:
        raise UserError(f"{path}: column {column!r} holds {array.type}, not text")
    try:
        cast = array if array.type == _type_of(name) else pc.cast(array, _type_of(name))
        cast.validate(full=True)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        kind = "numbers" if _type_of(name) == pa.float64() else "UTF-8 text"
        raise UserError(f"{path}: column {column!r} ({array.type}) cannot be read as {kind}: {error}") from None
    return cast


def _type_of(name: str) -> pa.DataType:
    if name == CHUNKS:
        return CHUNKS_TYPE
    return pa.string() if name in ("id", "document_id", "style", "text") else pa.float64()


def _lines(chunk: Chunk) -> Iterator[tuple[int, bytes]]:
    """(byte offset, line) of the lines that start inside a chunk."""
    # input_stream decompresses by the suffix.
    with io.BufferedReader(pa.input_stream(str(chunk.path)), 2**20) as stream:
        position = 0
        if chunk.start:  # the line under way at `start` belongs to the chunk before
            stream.seek(chunk.start - 1)
            position = chunk.start - 1 + len(stream.readline())
        while chunk.end is None or position < chunk.end:
            try:
                line = stream.readline()
            except OSError as error:
                raise UserError(f"{chunk.path} is damaged or cut off: {error}") from None
            if not line:
                return
            yield position, line
            position += len(line)


def _parse_lines(lines: Iterable[tuple[int, bytes]], path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(bytes of the line, its JSON object); blank lines are skipped."""
    for offset, line in lines:
        if line.isspace():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(f"{path}: the line at byte {offset:,} is not JSON: {error}") from None
        if not isinstance(row, dict):
            raise UserError(f"{path}: the line at byte {offset:,} is not a JSON object but {type(row).__name__}")
        yield len(line), row


def _read_jsonl(chunk: Chunk, columns: Mapping[str, str]) -> Iterator[pa.RecordBatch]:
    rows: list[dict[str, Any]] = []
    num_bytes = 0
    for size, row in _parse_lines(_lines(chunk), chunk.path):
        rows.append(row)
        num_bytes += size
        if len(rows) >= _BATCH_ROWS or num_bytes >= _BATCH_BYTES:
            yield _as_batch(rows, columns, chunk.path)
            rows, num_bytes = [], 0
    if rows:
        yield _as_batch(rows, columns, chunk.path)


def _as_batch(rows: list[dict[str, Any]], columns: Mapping[str, str], path: Path) -> pa.RecordBatch:
    arrays = []
    for name, column in columns.items():
        values = [row.get(column) for row in rows]
        allowed = (str, int) if name == "id" else (str,) if _type_of(name) == pa.string() else (int, float)
        for value in values:
            if value is not None and (not isinstance(value, allowed) or isinstance(value, bool)):
                raise UserError(f"{path}: field {column!r} holds {str(value)[:60]!r} ({type(value).__name__}); needed: "
                                f"{' or '.join(kind.__name__ for kind in allowed)}")
        if _type_of(name) == pa.string():
            values = [value if value is None else _clean(str(value)) for value in values]
        arrays.append(pa.array(values, _type_of(name)))
    return pa.record_batch(arrays, names=list(columns))


def _clean(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        return _LONE_SURROGATE.sub("\ufffd", text)
    return text
