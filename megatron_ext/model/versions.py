"""What differs between the versions of megatron-core that run here: 0.16.1 (Python 3.11) and 0.19.2 (Python 3.12)."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.dict_utils import extract_matching_values
from megatron.core.dist_checkpointing.mapping import LocalNonpersistentObject, ShardedBase
from megatron.core.dist_checkpointing.serialization import get_default_save_sharded_strategy
from megatron.core.dist_checkpointing.strategies.async_utils import AsyncRequest

_COMMON = "common.pt"


def save_checkpoint(sharded: dict[str, Any], folder: Path, *, content_metadata: dict[str, Any],
                    asynchronous: bool = False) -> AsyncRequest | None:
    """Save in the form that both versions load; all ranks call it.

    0.19 saves asynchronously through a package that needs a newer glibc unless it is told otherwise, and keeps what is
    no tensor in a shard, where 0.16 looks for a file; it reads the file too.
    """
    options: dict[str, Any] = {
        "sharded_strategy": get_default_save_sharded_strategy("torch_dist"), "async_sharded_save": asynchronous,
        "content_metadata": content_metadata,
    }
    if "async_strategy" not in inspect.signature(dist_checkpointing.save).parameters:
        return dist_checkpointing.save(sharded, str(folder), **options)
    common = extract_matching_values(sharded, _is_stored_apart)[1]
    request = dist_checkpointing.save(sharded, str(folder), async_strategy="mcore", **options)
    if dist.get_rank() == 0:
        torch.save({**common, "content_metadata": content_metadata}, folder / _COMMON)
    return request


def _is_stored_apart(value: Any) -> bool:
    return isinstance(value, ShardedBase | LocalNonpersistentObject)
