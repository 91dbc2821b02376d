"""Read any corpus: shards of Parquet or JSON (`shards`), or a documents artifact, in bounded memory.

A corpus is read in chunks: row groups of a Parquet file, a byte range of JSON lines, any other file whole. Chunks
depend on the files alone, so work that is done chunk by chunk is the same for any number of workers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from megatron_ext.data.batches import Chunk, Column, Present, RawBatch, present_columns, read_batches, split
from megatron_ext.data.columns import TYPES, Kind, cast
from megatron_ext.data.documents import CHUNKS, CHUNKS_TYPE, ORIGINAL
from megatron_ext.data.hashing import content_ids
from megatron_ext.data.shards import Place, Shards, corpus_shards, expanded, is_documents_artifact
from megatron_ext.data.streams import Location
from megatron_ext.errors import UserError

__all__ = ["CHUNK_BYTES", "Chunk", "Corpus", "Keep", "corpus_shards"]

CHUNK_BYTES = 16 * 2**20

Keep = Callable[[pa.RecordBatch], np.ndarray]
"""Scores and labels of rows, by their short names -> bool `[rows]`."""


@dataclass(frozen=True)
class Corpus:
    """A corpus and the columns to read from it; `a.b` is the column b of the nested column a.

    Where shards have columns `document_id` and `style` (and `chunks` of integers), they are what rewrites have.
    """

    path: Place
    text_column: str = "text"
    id_column: str | None = "id"
    """None: ids are made from the text (equal texts have equal ids), as they are for rows without an id."""
    score_columns: Mapping[str, str] = field(default_factory=dict)
    """Short name -> column of numbers."""
    label_columns: Mapping[str, str] = field(default_factory=dict)
    """Short name -> column of short texts."""
    with_chunks: bool = False
    """Read `chunks` as well: of which chunks of its document a rewrite is made; null for what is no rewrite."""

    def __getstate__(self) -> dict[str, Any]:
        """Without what is cached: workers need none of it."""
        return {each.name: getattr(self, each.name) for each in fields(self)}

    @cached_property
    def is_documents_artifact(self) -> bool:
        """Whether this is the output of selection or rewriting, whose columns have names of their own."""
        return isinstance(self.path, str | Path) and is_documents_artifact(Path(self.path).expanduser())

    @cached_property
    def found(self) -> Shards:
        """The shards, and what was left out. Raises UserError when there are none."""
        return corpus_shards(self.path, self.columns()["text"])

    def columns(self) -> dict[str, str]:
        """Name in the batches -> column that the shards must have."""
        own = self.is_documents_artifact
        id_column = "id" if own else self.id_column
        fixed = {"text": "text" if own else self.text_column} | ({"id": id_column} if id_column else {})
        return fixed | dict(self.score_columns) | dict(self.label_columns)

    def shards(self) -> Sequence[Location]:
        """The files, ordered by their path. Raises UserError when there are none."""
        return self.found.paths

    def num_bytes(self) -> int:
        """Size of all shards on disk."""
        return self.found.num_bytes

    def inputs(self, name: str = "corpus") -> dict[str, Path]:
        """What an artifact that is made of the corpus names as its inputs: `name`, or one for each place."""
        places = [self.path] if isinstance(self.path, str | Path) else self.path
        found = [path for place in places for path in expanded(place)]
        if len(found) == 1:
            return {name: found[0]}
        return {f"{name} {number}": path for number, path in enumerate(found, start=1)}

    def request(self) -> dict[str, Any]:
        """What else says which corpus it is."""
        return {}

    def describe(self) -> str:
        """What is read and what is not, in words."""
        return str(self.found)

    def chunks(self, chunk_bytes: int = CHUNK_BYTES) -> list[Chunk]:
        """All chunks in order, after checking that there are the columns.

        Raises UserError when a shard has no text, or none has another column (naming those that there are), or is
        damaged.
        """
        shards = self.shards()
        check_columns(shards, self.columns())
        return [chunk for shard in shards for chunk in split(shard, chunk_bytes)]

    def read(self, chunk: Chunk, keep: Keep | None = None, rows: np.ndarray | None = None, skip: int = 0,
             on_read: Callable[[int], None] | None = None) -> Iterator[pa.RecordBatch]:
        """The rows of a chunk in batches of about 4 MiB, at most 1,024 rows.

        Columns: `id`, `document_id`, `style`, `text` (strings; only `text` may be null), on demand `chunks`, the
        scores (float64) and labels (strings) by their short names. Raises UserError for rows that are not what the
        columns need.

        Args:
            keep: says by the scores and labels which rows are of interest; the others are dropped without a look at
                their texts.
            rows: the same by the number in the chunk, bool, False beyond its end.
            skip: rows at the beginning of a chunk that is a whole file to leave out.
            on_read: is told how many bytes of such a file were read, as it goes on.
        """
        judged = [*self.score_columns, *self.label_columns]
        first = 0
        for raw in self.read_raw(chunk, skip, on_read):
            if rows is not None:
                wanted = np.zeros(raw.num_rows, dtype=bool)
                here = rows[first:first + raw.num_rows]
                wanted[:len(here)] = here
                first, raw = first + raw.num_rows, raw.filter(wanted)
            if keep is not None:
                raw = raw.filter(keep(pa.record_batch([self._array(raw, name, chunk) for name in judged],
                                                      names=judged)))
            yield self._complete(raw, chunk)

    def read_raw(self, chunk: Chunk, skip: int = 0,
                 on_read: Callable[[int], None] | None = None) -> Iterator[RawBatch]:
        """The rows of a chunk as their file has them."""
        return read_batches(chunk, self._wanted, skip, on_read)

    @cached_property
    def _kinds(self) -> dict[str, Kind]:
        fixed: dict[str, Kind] = {"text": "text", "id": "id", "document_id": "id", "style": "label", CHUNKS: "chunks"}
        labels: dict[str, Kind] = dict.fromkeys(self.label_columns, "label")
        return fixed | dict.fromkeys(self.score_columns, "score") | labels

    @cached_property
    def _wanted(self) -> dict[str, Column]:
        rewrites = ["document_id", "style", *([CHUNKS] if self.with_chunks else [])]
        columns = dict(zip(rewrites, rewrites, strict=True)) | self.columns()
        return {name: (column, self._kinds[name]) for name, column in columns.items()}

    def _array(self, raw: RawBatch, name: str, chunk: Chunk) -> pa.Array:
        """A column as its kind needs it; nulls where the shard lacks it. Raises UserError where it cannot be."""
        column, kind = self._wanted[name]
        if name not in raw.arrays:
            return pa.nulls(raw.num_rows, TYPES[kind])
        return cast(raw.arrays[name], kind, column, str(chunk.path), raw.place_of)

    def _complete(self, raw: RawBatch, chunk: Chunk) -> pa.RecordBatch:
        arrays = {name: self._array(raw, name, chunk) for name in self._wanted}
        ids = arrays.get("id", pa.nulls(raw.num_rows, pa.string()))
        if ids.null_count:
            ids = pc.coalesce(ids, content_ids(arrays["text"]))
        arrays["id"] = ids
        arrays["document_id"] = _filled(arrays["document_id"], ids)
        arrays["style"] = _filled(arrays["style"], pa.scalar(ORIGINAL, pa.string()))
        arrays.setdefault(CHUNKS, pa.nulls(raw.num_rows, CHUNKS_TYPE))
        names = ["id", "document_id", "style", "text", *([CHUNKS] if self.with_chunks else []), *self.score_columns,
                 *self.label_columns]
        return pa.record_batch([arrays[name] for name in names], names=names)


def _filled(array: pa.Array, fill: pa.Array | pa.Scalar) -> pa.Array:
    return pc.coalesce(array, fill) if array.null_count else array


def check_columns(shards: Sequence[Location], columns: Mapping[str, str]) -> None:
    """Raise UserError when a shard has no text, or no shard has one of the other columns; say which shards lack some.

    JSON rows may lack what is null, so that a column may first turn up late: it is sought until it is found.
    """
    found = {shard: present_columns(shard, columns.values()) for shard in shards}
    for shard, present in found.items():
        if columns["text"] in present.missing and not present.is_empty:
            _refuse_missing(shard, {columns["text"]}, columns, found)
    filled = {shard: present for shard, present in found.items() if not present.is_empty}
    missing = set.intersection(*(present.missing for present in filled.values())) if filled else set()
    if missing:
        _refuse_missing(next(iter(filled)), missing, columns, filled)
    _tell_missing(filled)


def _refuse_missing(shard: Location, missing: set[str], columns: Mapping[str, str],
                    found: Mapping[Location, Present]) -> None:
    """Raise UserError unless the columns turn up in later rows: of the shard the text, of any shard the others."""
    shards = [shard] if columns["text"] in missing else list(found)
    names: dict[str, None] = {}
    for one in shards:
        present = present_columns(one, missing, sought_rows=None)
        missing = missing & present.missing
        names |= dict.fromkeys(present.columns)
        if not missing:
            return
    told = [column for column in columns.values() if column in missing]
    hint = " (id_column=null makes ids from the texts)" if columns.get("id") in missing else ""
    raise UserError(f"{shard} has no column {', '.join(map(repr, told))}; its columns are: {', '.join(names)}{hint}")


def _tell_missing(found: Mapping[Location, Present]) -> None:
    for column in sorted(set().union(*(present.missing for present in found.values()))):
        lacking = [shard for shard, present in found.items() if column in present.missing]
        print(f"corpus: {len(lacking):,} of {len(found):,} shards seem to lack column {column!r}, first {lacking[0]}: "
              "their rows count as rows without it", flush=True)
