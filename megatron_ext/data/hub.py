"""Corpora of the Hugging Face hub, streamed through `datasets`: `hf://owner/name?config=…&split=…&revision=…`.

A local folder that `datasets` can load works too (`hf:///data/folder`). A shard of the data set is a chunk; a stage
that was interrupted goes on with the shards it lacks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

import pyarrow as pa

from megatron_ext.data.corpus import CHUNK_BYTES, Chunk, Corpus, refuse_missing_columns, renamed
from megatron_ext.errors import UserError

if TYPE_CHECKING:
    from datasets import IterableDataset

_SCHEME = "hf://"
_OPTIONS = ("config", "split", "revision")
_BATCH_ROWS = 256


def open_corpus(place: str, text_column: str, id_column: str | None, score_columns: Mapping[str, str]) -> Corpus:
    """The corpus at a local path or an `hf://` address. Raises UserError for an address that says too much."""
    if not place.startswith(_SCHEME):
        return Corpus(Path(place), text_column, id_column, score_columns)
    name, _, query = place.removeprefix(_SCHEME).partition("?")
    options = dict(parse_qsl(query))
    unknown = sorted(set(options) - set(_OPTIONS))
    if unknown or not name:
        raise UserError(f"{place}: {', '.join(unknown) or 'an empty name'} is not understood; needed: "
                        "hf://owner/name?config=…&split=…&revision=…, of which split is train by default")
    return HubCorpus(Path(name), text_column, id_column, score_columns, config=options.get("config"),
                     split=options.get("split", "train"), revision=options.get("revision"))


@dataclass(frozen=True)
class HubCorpus(Corpus):
    """A data set that `datasets` streams; `path` is its name on the hub, or a local folder."""

    config: str | None = None
    split: str = "train"
    revision: str | None = None

    @property
    def is_documents_artifact(self) -> bool:
        """Never: artifacts are read as they are."""
        return False

    def shards(self) -> list[Path]:
        """A name for each shard of the data set."""
        return [Path(f"{self.split}-{number:05d}") for number in range(self._open().num_shards)]

    def num_bytes(self) -> int:
        """Not known before it is read: 0."""
        return 0

    def inputs(self) -> dict[str, Path]:
        """A local folder is an input; what lies on the hub is named in the request."""
        return {"corpus": self.path} if self.path.is_dir() else {}

    def request(self) -> dict[str, Any]:
        """Which data set it is; on the hub, by the commit that is read."""
        request = {"config": self.config, "split": self.split}
        if not self.path.is_dir():
            request |= {"dataset": str(self.path), "revision": _commit(str(self.path), self.revision)}
        return {"corpus": request}

    def chunks(self, chunk_bytes: int = CHUNK_BYTES) -> list[Chunk]:
        """One a shard, after checking that there are the columns."""
        present = self._open().column_names or list(next(iter(self._open()), self.columns()))
        refuse_missing_columns(f"hf://{self.path}", present, self.columns())
        return [Chunk(shard, number, None) for number, shard in enumerate(self.shards())]

    def read_columns(self, chunk: Chunk) -> Iterator[pa.RecordBatch]:
        """The columns of a chunk under the names of the batches, as the data set has them."""
        dataset = self._open()
        shard = dataset.shard(num_shards=dataset.num_shards, index=chunk.start)
        for table in shard.with_format("arrow").iter(_BATCH_ROWS):
            for batch in table.combine_chunks().to_batches():
                yield renamed(batch, self.columns())

    def _open(self) -> IterableDataset:
        return _load(str(self.path), self.config, self.split, self.revision)


@lru_cache(maxsize=2)
def _load(name: str, config: str | None, split: str, revision: str | None) -> IterableDataset:
    import datasets

    try:
        return datasets.load_dataset(name, config, split=split, revision=revision, streaming=True)
    except (OSError, ValueError) as error:  # what `datasets` raises for names that it does not find
        raise UserError(f"hf://{name} (config {config}, split {split}) cannot be read: {error}") from None


@lru_cache(maxsize=2)
def _commit(name: str, revision: str | None) -> str | None:
    from huggingface_hub import HfApi

    try:
        return HfApi().dataset_info(name, revision=revision).sha
    except (OSError, ValueError) as error:
        raise UserError(f"hf://{name}: its revision cannot be looked up: {error}") from None
