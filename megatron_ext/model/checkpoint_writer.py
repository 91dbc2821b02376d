"""Writing a megatron-core distributed checkpoint one tensor at a time, in one process, without building the model.

The format is that of `megatron.core.dist_checkpointing` (`torch_dist`): the layers of a kind are one tensor with a
leading layer axis, of which each layer is a part. Any layout loads it.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from megatron.core.dist_checkpointing.core import CheckpointingConfig, save_config
from torch import Tensor
from torch.distributed.checkpoint import DefaultSavePlanner, FileSystemWriter, SavePlan
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, StorageMeta, TensorProperties
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType

_COMMON = "common.pt"
_LAYERS = "decoder.layers."
_MODULES_WITH_EXTRA_STATE = ("self_attention.linear_qkv", "self_attention.linear_proj", "mlp.linear_fc1",
                             "mlp.linear_fc2")


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
    """Write the checkpoint into an existing folder; only one tensor is in memory at a time.

    Equal tensors give equal bytes.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # one process is what is meant
        dcp.save({}, storage_writer=_Writer(folder), planner=_Planner(tensors, num_layers), no_dist=True)
    torch.save({"content_metadata": content_metadata}, folder / _COMMON)
    save_config(CheckpointingConfig("torch_dist"), str(folder))


class _Writer(FileSystemWriter):
    """One file; no place and no random identity in its metadata."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)

    def storage_meta(self) -> StorageMeta:
        return StorageMeta()


class _Planner(DefaultSavePlanner):
    """Plans what is written without having it, and makes each tensor when it is written."""

    def __init__(self, tensors: Sequence[LayerTensor], num_layers: int) -> None:
        super().__init__(flatten_state_dict=False)
        self._items = {_index(tensor): tensor for tensor in tensors}
        self._num_layers = num_layers

    def create_local_plan(self) -> SavePlan:
        tensors = [_write_item(tensor, self._num_layers) for tensor in self._items.values()]
        self.plan = SavePlan(tensors + _extra_states(self._num_layers))
        return self.plan

    def resolve_data(self, write_item: WriteItem) -> Tensor | io.BytesIO:
        if write_item.type == WriteItemType.BYTE_IO:
            nothing = io.BytesIO()
            torch.save([None], nothing)
            return nothing
        tensor = self._items[write_item.index]
        value = tensor.make().to(tensor.dtype)
        assert value.shape == tensor.shape, (tensor.name, value.shape, tensor.shape)
        return value if tensor.layer is None else value[None]


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


def _extra_states(num_layers: int) -> list[WriteItem]:
    """The empty objects that megatron-core's linear layers save beside their weights, and look for."""
    return [
        WriteItem(MetadataIndex(f"{_LAYERS}{module}._extra_state/shard_{layer}_{num_layers}"), WriteItemType.BYTE_IO)
        for module in _MODULES_WITH_EXTRA_STATE for layer in range(num_layers)
    ]
