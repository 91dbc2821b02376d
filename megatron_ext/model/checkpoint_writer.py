"""Writing a megatron-core distributed checkpoint one tensor at a time, in one process, without building the model.

The format is that of `megatron.core.dist_checkpointing` (`torch_dist`): the layers of a kind are one tensor with a
leading layer axis, of which each layer is a part. Any layout loads it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from megatron.core.dist_checkpointing.core import CheckpointingConfig, save_config
from torch import Tensor
from torch.distributed.checkpoint import DefaultSavePlanner, FileSystemWriter, SavePlan, SavePlanner
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, StorageMeta, TensorProperties
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future
from torch.serialization import get_crc32_options, set_crc32_options

from megatron_ext.hashing import HashedFile
from megatron_ext.model.streaming import made_ahead

_COMMON = "common.pt"
_DATA = "__0_0.distcp"
_LAYERS = "decoder.layers."


@dataclass(frozen=True)
class LayerTensor:
    """One tensor of the model; `make` gives it when it is to be written."""

    name: str
    """As in the tables of weights, `*` for the layer."""
    layer: int | None
    shape: tuple[int, ...]
    dtype: torch.dtype
    make: Callable[[], Tensor]


def write_checkpoint(folder: Path, tensors: Sequence[LayerTensor], num_layers: int,
                     content_metadata: dict[str, Any]) -> None:
    """Write the checkpoint into an existing folder; only two tensors are in memory at a time.

    Equal tensors give equal bytes.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # one process is what is meant
        dcp.save({}, storage_writer=_Writer(folder), planner=_Planner(tensors, num_layers), no_dist=True)
    torch.save({"content_metadata": content_metadata}, folder / _COMMON)
    save_config(CheckpointingConfig("torch_dist"), str(folder))


def remove_checkpoint(folder: Path) -> None:
    """Remove what an interrupted writer has left."""
    for left in (*folder.glob("*.distcp"), folder / ".metadata"):
        left.unlink(missing_ok=True)


class _Writer(FileSystemWriter):
    """One file, hashed while it is written; no place and no random identity in its metadata."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._folder = folder

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write all items, as archives of torch.save, one after the other into one file."""
        written: Future[list[WriteResult]] = Future()
        values = made_ahead(partial(planner.resolve_data, item) for item in plan.items)
        with HashedFile(self._folder / _DATA) as file, _without_checksums():
            written.set_result([_write(item, value, file) for item, value in zip(plan.items, values, strict=True)])
        return written

    def storage_meta(self) -> StorageMeta:
        return StorageMeta()


class _Planner(DefaultSavePlanner):
    """Plans what is written without having it, and makes each tensor when it is written."""

    def __init__(self, tensors: Sequence[LayerTensor], num_layers: int) -> None:
        super().__init__(flatten_state_dict=False)
        self._items = {_index(tensor): tensor for tensor in tensors}
        self._num_layers = num_layers

    def create_local_plan(self) -> SavePlan:
        self.plan = SavePlan([_write_item(tensor, self._num_layers) for tensor in self._items.values()])
        return self.plan

    def resolve_data(self, write_item: WriteItem) -> Tensor:
        tensor = self._items[write_item.index]
        value = tensor.make().to(tensor.dtype)
        assert value.shape == tensor.shape, (tensor.name, value.shape, tensor.shape)
        return value if tensor.layer is None else value[None]


def _write(item: WriteItem, value: Tensor, file: HashedFile) -> WriteResult:
    start = file.tell()
    torch.save(value, file)
    length = file.tell() - start
    return WriteResult(item.index, length, _StorageInfo(_DATA, start, length))


@contextmanager
def _without_checksums() -> Iterator[None]:
    """The manifest has a better one of the whole file."""
    before = get_crc32_options()
    set_crc32_options(False)
    try:
        yield
    finally:
        set_crc32_options(before)


def _write_item(tensor: LayerTensor, num_layers: int) -> WriteItem:
    if tensor.layer is None:
        sizes, whole = tensor.shape, tensor.shape
    else:
        sizes, whole = (1, *tensor.shape), (num_layers, *tensor.shape)
    index = _index(tensor)
    chunk = ChunkStorageMetadata(offsets=index.offset, sizes=torch.Size(sizes))
    data = TensorWriteData(chunk, TensorProperties(dtype=tensor.dtype), torch.Size(whole))
    return WriteItem(index, WriteItemType.SHARD, tensor_data=data)


def _index(tensor: LayerTensor) -> MetadataIndex:
    first = [] if tensor.layer is None else [tensor.layer]
    return MetadataIndex(tensor.name.replace(_LAYERS + "*.", _LAYERS),
                         torch.Size([*first, *[0] * len(tensor.shape)]))
