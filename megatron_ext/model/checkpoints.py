"""Loading a model alone (no optimizer) from a distributed checkpoint, through megatron-core, under any layout."""

from __future__ import annotations

import pickle
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.dist_checkpointing.dict_utils import extract_matching_values
from megatron.core.dist_checkpointing.mapping import ShardedObject
from megatron.core.models.gpt import GPTModel
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.metadata import StorageMeta

CONTENT_METADATA = {"singleton_local_shards": False}
"""How megatron-core names what it stores: the layers of a kind as one tensor."""


def load_model(chunks: list[GPTModel], folder: Path) -> None:
    """Read this rank's parts of a model from a checkpoint, which may hold an optimizer too; all ranks call it."""
    with without_deprecation_warnings():
        loaded = dist_checkpointing.load(without_absent_extras(sharded_model_state(chunks), folder), str(folder))
    for number, chunk in enumerate(chunks):
        # Not strict: megatron's modules look for `_extra_state` objects, which hold nothing here.
        missing, _ = chunk.load_state_dict(loaded[_key(chunks, number)], strict=False)
        assert all(name.endswith("_extra_state") for name in missing), missing


def without_absent_extras(sharded: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Without the `_extra_state` objects that the checkpoint does not have.

    Which there are depends on the layers that saved it: Transformer Engine's norms have some, those of `local` none,
    an import writes none. They hold something under fp8 with delayed scaling alone.
    """
    stored = FileSystemReader(folder).read_metadata().state_dict_metadata

    def is_absent(value: Any) -> bool:
        return isinstance(value, ShardedObject) and "_extra_state" in value.key and value.unique_key not in stored

    return extract_matching_values(sharded, is_absent)[1]


@contextmanager
def without_deprecation_warnings() -> Iterator[None]:
    """megatron-core's checkpoints use parts of torch that torch deprecates, and says so on every call."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


def sharded_model_state(chunks: list[GPTModel]) -> dict[str, Any]:
    """This rank's parts of the model under the names that megatron-core stores, which are the same for every layout."""
    metadata = {**CONTENT_METADATA, "dp_cp_group": parallel_state.get_data_parallel_group(with_context_parallel=True)}
    return {_key(chunks, number): chunk.sharded_state_dict(metadata=dict(metadata))
            for number, chunk in enumerate(chunks)}


def forget_place(folder: Path) -> None:
    """Take the folder's path, the random name of the save and the order in which its writers came to their ends out of
    a new checkpoint: equal states, equal bytes."""
    metadata = FileSystemReader(folder).read_metadata()
    metadata.storage_meta = StorageMeta()
    metadata.storage_data = dict(sorted(metadata.storage_data.items(), key=lambda item: str(item[0])))
    with open(folder / ".metadata", "wb") as file:
        pickler = pickle.Pickler(file)
        pickler.fast = True  # whether two equal texts are one object does not count
        pickler.dump(metadata)
    common = folder / "common.pt"
    torch.save(_with_shared_texts(torch.load(common, weights_only=False)), common)


def _with_shared_texts(value: Any) -> Any:
    """A copy in which equal texts are one object, as pickling tells them apart."""
    match value:
        case str():
            return sys.intern(value)
        case dict():
            return {_with_shared_texts(key): _with_shared_texts(one) for key, one in value.items()}
        case list() | tuple():
            return type(value)(map(_with_shared_texts, value))
    return value


def _key(chunks: list[GPTModel], number: int) -> str:
    return f"model{number}" if len(chunks) > 1 else "model"
