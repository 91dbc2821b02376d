"""Reading single tensors of a megatron-core distributed checkpoint, in one process, whatever layout wrote it."""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.checkpoint import FileSystemReader, LoadPlan, LoadPlanner
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.planner import ReadItem
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

from megatron_ext.errors import UserError

_LAYERS = "decoder.layers."


class CheckpointReader:
    """The model's tensors in a `torch_dist` checkpoint; nothing is read before it is asked for.

    megatron-core stores all layers of a kind as one tensor with a leading layer axis; here each layer's is a tensor of
    its own, and the name of all of them is `decoder.layers.*.…`, as in the tables of weights.

    Raises UserError when the folder holds no such checkpoint.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self._reader = FileSystemReader(self.folder)
        self._metadata = self._read_metadata()
        self._reader.set_up_storage_reader(self._metadata, is_coordinator=True)

    def names(self) -> set[str]:
        """Names of the model's tensors, `*` for the layer."""
        return {name.replace(_LAYERS, _LAYERS + "*.") for name, entry in self._metadata.state_dict_metadata.items()
                if isinstance(entry, TensorStorageMetadata) and not name.startswith("optimizer.")}

    def num_layers(self, name: str) -> int | None:
        """Layers of a tensor; None where it belongs to no layer."""
        return self._entry(name).size[0] if "*" in name else None

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of one layer's tensor, whole."""
        size = tuple(self._entry(name).size)
        return size[1:] if "*" in name else size

    def dtype(self, name: str) -> torch.dtype:
        """Type of a tensor."""
        return self._entry(name).properties.dtype

    def read(self, name: str, layer: int | None) -> Tensor:
        """One tensor, put together from the parts that the ranks wrote."""
        entry = self._entry(name)
        target = torch.empty(self.shape(name), dtype=entry.properties.dtype)
        if layer is None:
            wanted = ChunkStorageMetadata(torch.Size([0] * target.ndim), target.shape)
            planner = _IntoTensor(target)
        else:
            wanted = ChunkStorageMetadata(torch.Size([layer] + [0] * target.ndim), torch.Size([1, *target.shape]))
            planner = _IntoTensor(target[None])
        items = create_read_items_for_chunk_list(_stored_name(name), entry, [wanted])
        self._reader.read_data(LoadPlan(items), planner).wait()
        return target

    def _entry(self, name: str) -> TensorStorageMetadata:
        return self._metadata.state_dict_metadata[_stored_name(name)]

    def _read_metadata(self) -> Metadata:
        try:
            return self._reader.read_metadata()
        except (OSError, EOFError, pickle.UnpicklingError) as error:
            raise UserError(f"{self.folder} holds no distributed checkpoint ({error}); give a checkpoint folder such "
                            "as <run>/checkpoints/iter_0000100") from None


class _IntoTensor(LoadPlanner):
    """Copies what is read to its place in one tensor."""

    def __init__(self, target: Tensor) -> None:
        self._target = target

    def resolve_tensor(self, read_item: ReadItem) -> Tensor:
        part = self._target
        for axis, (start, length) in enumerate(zip(read_item.dest_offsets, read_item.lengths, strict=True)):
            part = part.narrow(axis, start, length)
        return part

    def commit_tensor(self, read_item: ReadItem, tensor: Tensor) -> None:
        pass

    def load_bytes(self, read_item: ReadItem, value: object) -> None:
        raise NotImplementedError

    def set_up_planner(self, *args: object, **kwargs: object) -> None:
        raise NotImplementedError

    create_local_plan = create_global_plan = finish_plan = set_up_planner


def _stored_name(name: str) -> str:
    return name.replace(_LAYERS + "*.", _LAYERS)
