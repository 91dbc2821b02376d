"""Reading single tensors of a megatron-core distributed checkpoint, in one process, whatever layout wrote it.

A checkpoint is a few large files of many small archives, each what `torch.save` wrote of one rank's part of one tensor.
Parts are mapped into memory, not read: a part that is a whole tensor costs no memory and no copy.
"""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorStorageMetadata,
)

from megatron_ext.errors import UserError
from megatron_ext.model.streaming import map_tensor

_LAYERS = "decoder.layers."


class CheckpointReader:
    """The model's tensors in a `torch_dist` checkpoint; nothing is read before it is asked for.

    megatron-core stores all layers of a kind as one tensor with a leading layer axis; here each layer's is a tensor of
    its own, and the name of all of them is `decoder.layers.*.…`, as in the tables of weights.

    Raises UserError when the folder holds no such checkpoint.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self._metadata = self._read_metadata()

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
        chunks = [chunk for chunk in self._entry(name).chunks
                  if layer is None or chunk.offsets[0] <= layer < chunk.offsets[0] + chunk.sizes[0]]
        shape = self.shape(name)
        if len(chunks) == 1:
            whole = self._part(name, layer, chunks[0])
            assert whole.shape == shape, (name, whole.shape, shape)
            return whole
        whole = torch.empty(shape, dtype=self.dtype(name))
        num_filled = 0
        for chunk in chunks:
            part = self._part(name, layer, chunk)
            place = whole
            for axis, start in enumerate(chunk.offsets[0 if layer is None else 1:]):
                place = place.narrow(axis, start, part.shape[axis])
            place.copy_(part)
            num_filled += part.numel()
        assert num_filled == whole.numel(), f"{name}: parts overlap, or some are missing"
        return whole

    def _part(self, name: str, layer: int | None, chunk: ChunkStorageMetadata) -> Tensor:
        """What one rank wrote of a tensor, of one layer."""
        place = self._metadata.storage_data[MetadataIndex(_stored_name(name), chunk.offsets)]
        part = _map_archive(self.folder / place.relative_path, place.offset, place.length)
        return part if layer is None else part[layer - chunk.offsets[0]]

    def _entry(self, name: str) -> TensorStorageMetadata:
        return self._metadata.state_dict_metadata[_stored_name(name)]

    def _read_metadata(self) -> Metadata:
        try:
            return FileSystemReader(self.folder).read_metadata()
        except (OSError, EOFError, pickle.UnpicklingError) as error:
            raise UserError(f"{self.folder} holds no distributed checkpoint ({error}); give a checkpoint folder such "
                            "as <run>/checkpoints/iter_0000100") from None


def _stored_name(name: str) -> str:
    return name.replace(_LAYERS + "*.", _LAYERS)


def _map_archive(path: Path, offset: int, length: int) -> Tensor:
    """The tensor in the archive of `length` bytes at `offset`, its data mapped from the file."""
    with open(path, "rb") as file:
        if offset + length > os.fstat(file.fileno()).st_size:
            raise UserError(f"{path} is shorter than its checkpoint says: it was not written to its end")
        window = _Window(file, offset, length)
        with zipfile.ZipFile(window) as archive:
            [record] = [entry for entry in archive.infolist() if "/data/" in entry.filename]
            with archive.open(record):
                start = offset + window.tell()  # past the entry's own header
        window.seek(0)
        layout = torch.load(window, map_location="meta", weights_only=True)
        assert record.compress_type == zipfile.ZIP_STORED
    data = map_tensor(path, start, record.file_size // layout.dtype.itemsize, layout.dtype, whole=True)
    return data.as_strided(layout.size(), layout.stride(), layout.storage_offset())


class _Window(io.RawIOBase):
    """A part of a file as a file of its own."""

    def __init__(self, file: io.BufferedReader, offset: int, length: int) -> None:
        self._file, self._offset, self._length = file, offset, length
        self._position = 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._length}[whence]
        self._position = base + offset
        return self._position

    def readinto(self, buffer: memoryview) -> int:
        self._file.seek(self._offset + self._position)
        wanted = min(len(buffer), self._length - self._position)
        num_read = self._file.readinto(memoryview(buffer)[:wanted])
        self._position += num_read
        return num_read
