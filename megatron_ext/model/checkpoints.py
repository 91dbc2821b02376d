"""Checkpoints of a model alone (no optimizer), in megatron-core's distributed format: any layout loads them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from megatron.core import dist_checkpointing, parallel_state
from megatron.core.dist_checkpointing.serialization import get_default_save_sharded_strategy
from megatron.core.models.gpt import GPTModel

_METADATA = {"singleton_local_shards": False}


def save_model(chunks: list[GPTModel], folder: Path) -> None:
    """Write this rank's parts of the model; all ranks call it."""
    with without_deprecation_warnings():
        dist_checkpointing.save(_sharded_state(chunks), str(folder), content_metadata=dict(_METADATA),
                                sharded_strategy=get_default_save_sharded_strategy("torch_dist"))


def load_model(chunks: list[GPTModel], folder: Path) -> None:
    """Read this rank's parts of a model from a checkpoint, which may hold an optimizer too; all ranks call it."""
    with without_deprecation_warnings():
        loaded = dist_checkpointing.load(_sharded_state(chunks), str(folder))
    for number, chunk in enumerate(chunks):
        # Not strict: megatron's modules write `_extra_state` objects that hold nothing here.
        chunk.load_state_dict(loaded[_key(chunks, number)], strict=False)


@contextmanager
def without_deprecation_warnings() -> Iterator[None]:
    """megatron-core's checkpoints use parts of torch that torch deprecates, and says so on every call."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


def _sharded_state(chunks: list[GPTModel]) -> dict[str, Any]:
    metadata = {**_METADATA, "dp_cp_group": parallel_state.get_data_parallel_group(with_context_parallel=True)}
    return {_key(chunks, number): chunk.sharded_state_dict(metadata=dict(metadata))
            for number, chunk in enumerate(chunks)}


def _key(chunks: list[GPTModel], number: int) -> str:
    return f"model{number}" if len(chunks) > 1 else "model"
