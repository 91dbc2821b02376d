"""Corpora of the Hugging Face hub, streamed through `datasets`: `hf://owner/name?config=…&split=…&revision=…`.

A local folder that `datasets` can load works too (`hf:///data/folder`). `datasets` says which files a split consists
of; Parquet and JSON are then read as every corpus is, in the same chunks, wherever they lie. Of other kinds of files,
what `datasets` streams of a shard is a chunk. A stage that was interrupted goes on with the chunks it lacks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

import pyarrow as pa

from megatron_ext.data.batches import RawBatch, split
from megatron_ext.data.columns import column_of, has_column
from megatron_ext.data.corpus import CHUNK_BYTES, Chunk, Corpus, check_columns
from megatron_ext.data.shards import Place, Shards, format_of
from megatron_ext.data.streams import Location
from megatron_ext.errors import UserError

if TYPE_CHECKING:
    from datasets import IterableDataset

_SCHEME = "hf://"
_OPTIONS = ("config", "split", "revision")
_BATCH_ROWS = 256


def open_corpus(place: Place, text_column: str, id_column: str | None, score_columns: Mapping[str, str],
                label_columns: Mapping[str, str] | None = None, with_chunks: bool = False) -> Corpus:
    """The corpus at local paths or an `hf://` address. Raises UserError for an address that says too much."""
    columns = (text_column, id_column, score_columns, label_columns or {}, with_chunks)
    if not str(place).startswith(_SCHEME):
        return Corpus(place, *columns)
    name, _, query = str(place).removeprefix(_SCHEME).partition("?")
    options = dict(parse_qsl(query))
    unknown = sorted(set(options) - set(_OPTIONS))
    if unknown or not name:
        raise UserError(f"{place}: {', '.join(unknown) or 'an empty name'} is not understood; needed: "
                        "hf://owner/name?config=…&split=…&revision=…, of which split is train by default")
    return HubCorpus(Path(name), *columns, config=options.get("config"), split=options.get("split", "train"),
                     revision=options.get("revision"))


@dataclass(frozen=True)
class HubCorpus(Corpus):
    """A data set of the hub; `path` is its name there, or a local folder."""

    config: str | None = None
    split: str = "train"
    revision: str | None = None

    @cached_property
    def is_documents_artifact(self) -> bool:
        """Never: artifacts are read as they are."""
        return False

    @property
    def name(self) -> str:
        """The data set's name, for messages."""
        return f"{_SCHEME}{self.path}"

    @cached_property
    def found(self) -> Shards:
        """The files, where they lie here."""
        return Shards([shard for shard in self._files or [] if isinstance(shard, Path)])

    def shards(self) -> Sequence[Location]:
        """The files, or a name for each shard of what `datasets` has to read."""
        if self._files is not None:
            return self._files
        return [f"{self.split}-{number:05d}" for number in range(self._streamed().num_shards)]

    def inputs(self, name: str = "corpus") -> dict[str, Path]:
        """A local folder is an input; what lies on the hub is named in the request."""
        return {name: Path(str(self.path))} if self._is_local else {}

    def request(self) -> dict[str, Any]:
        """Which data set it is; on the hub, by the commit that is read."""
        request = {"config": self.config, "split": self.split}
        if not self._is_local:
            request |= {"dataset": str(self.path), "revision": _commit(str(self.path), self.revision)}
        return {"corpus": request}

    def describe(self) -> str:
        """What is read, in words."""
        how = "" if self._files is not None else ", streamed through datasets"
        return f"{self.name}, split {self.split}: {len(self.shards()):,} shards{how}"

    def chunks(self, chunk_bytes: int = CHUNK_BYTES) -> list[Chunk]:
        """All chunks in order, after checking that there are the columns."""
        if self._files is not None:
            check_columns(self._files, self.columns())
            return [chunk for shard in self._files for chunk in split(shard, chunk_bytes)]
        with _told(self.name):
            present = self._streamed().column_names or list(next(iter(self._streamed()), self.columns()))
        missing = [column for column in self.columns().values() if column.split(".")[0] not in present
                   and column not in present]
        if missing:
            raise UserError(f"{self.name} has no column {', '.join(map(repr, missing))}; its columns are: "
                            f"{', '.join(present)}")
        return [Chunk(str(shard), number, None) for number, shard in enumerate(self.shards())]

    def read_raw(self, chunk: Chunk, skip: int = 0,
                 on_read: Callable[[int], None] | None = None) -> Iterator[RawBatch]:
        """The rows of a chunk as the data set has them."""
        return super().read_raw(chunk, skip, on_read) if self._files is not None else self._read_streamed(chunk, skip)

    def _read_streamed(self, chunk: Chunk, row: int) -> Iterator[RawBatch]:
        """From this row on."""
        with _told(f"{self.name}, {chunk.path}"):
            dataset = self._streamed()
            shard = dataset.shard(num_shards=dataset.num_shards, index=chunk.start)
            for table in shard.skip(row).with_format("arrow").iter(_BATCH_ROWS):
                for batch in table.combine_chunks().to_batches():
                    arrays = {name: column_of(batch, column) for name, (column, _) in self._wanted.items()
                              if has_column(list(batch.schema), column)}
                    yield RawBatch(arrays, len(batch), partial(_place, self.name, chunk, row))
                    row += len(batch)

    @property
    def _is_local(self) -> bool:
        return Path(str(self.path)).is_dir()

    @cached_property
    def _files(self) -> list[Location] | None:
        """The Parquet and JSON files of the split; None when there are others."""
        return _data_files(str(self.path), self.config, self.split, self.revision)

    def _streamed(self) -> IterableDataset:
        return _stream(str(self.path), self.config, self.split, self.revision)


def _place(name: str, chunk: Chunk, first_row: int, row: int) -> str:
    return f"{name}, {chunk.path}, row {first_row + row:,} (counted from 0)"


@contextmanager
def _told(place: str) -> Iterator[None]:
    """Make one message of what `datasets` raises for data that it cannot read."""
    from datasets.exceptions import DatasetsError

    try:
        yield
    except UserError:
        raise
    except (DatasetsError, pa.ArrowException, ValueError, TypeError, KeyError, EOFError, OSError) as error:
        cause = error.__cause__ or error
        raise UserError(f"{place} cannot be read: {' '.join(str(cause).split())[:300]}") from None


@lru_cache(maxsize=2)
def _data_files(name: str, config: str | None, split: str, revision: str | None) -> list[Location] | None:
    import datasets

    with _told(f"{_SCHEME}{name} (config {config}, split {split})"):
        builder = datasets.load_dataset_builder(name, config, revision=revision)
    by_split = {str(key): list(map(str, files)) for key, files in (builder.config.data_files or {}).items()}
    if not by_split:
        return None
    if split not in by_split:
        raise UserError(f"{_SCHEME}{name} cannot be read: it has no split {split!r}; its splits are: "
                        f"{', '.join(sorted(by_split))}")
    files = sorted(by_split[split])
    if not all(format_of(file) for file in files) or any("::" in file for file in files):
        return None
    return [file if "://" in file else Path(file) for file in files]


@lru_cache(maxsize=2)
def _stream(name: str, config: str | None, split: str, revision: str | None) -> IterableDataset:
    import datasets

    with _told(f"{_SCHEME}{name} (config {config}, split {split})"):
        return datasets.load_dataset(name, config, split=split, revision=revision, streaming=True)


@lru_cache(maxsize=2)
def _commit(name: str, revision: str | None) -> str | None:
    from huggingface_hub import HfApi

    try:
        return HfApi().dataset_info(name, revision=revision).sha
    except (OSError, ValueError) as error:
        raise UserError(f"hf://{name}: its revision cannot be looked up: {error}") from None
