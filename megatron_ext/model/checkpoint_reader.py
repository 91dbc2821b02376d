"""Reading single tensors of a megatron-core distributed checkpoint, in one process, whatever layout wrote it.

A checkpoint is a few large files of many small archives, each what `torch.save` wrote of one rank's part of one tensor.
Parts are mapped into memory, not read: a part that is a whole tensor costs no memory and no copy.
"""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from dataclasses import dataclass
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
        self._archives: dict[MetadataIndex, _Archive] = {}

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

    def read(self, name: str, layer: int | None, rows: range | None = None) -> Tensor:
        """One tensor, or consecutive rows of it, put together from the parts that the ranks wrote."""
        shape, axis = self.shape(name), 0 if layer is None else 1
        rows = range(shape[0]) if rows is None else rows
        parts = [(chunk, wanted) for chunk in self._entry(name).chunks
                 if (layer is None or chunk.offsets[0] <= layer < chunk.offsets[0] + chunk.sizes[0])
                 and (wanted := _common(rows, chunk.offsets[axis], chunk.sizes[axis]))]
        shape = (len(rows), *shape[1:])
        if len(parts) == 1:
            whole = self._part(name, layer, *parts[0])
            assert whole.shape == shape, (name, whole.shape, shape)
            return whole
        whole = torch.empty(shape, dtype=self.dtype(name))
        num_filled = 0
        for chunk, wanted in parts:
            part = self._part(name, layer, chunk, wanted)
            place = whole.narrow(0, wanted.start - rows.start, len(wanted))
            for other, start in enumerate(chunk.offsets[axis + 1:], start=1):
                place = place.narrow(other, start, part.shape[other])
            place.copy_(part)
            num_filled += part.numel()
        assert num_filled == whole.numel(), f"{name}: parts overlap, or some are missing"
        return whole

    def _part(self, name: str, layer: int | None, chunk: ChunkStorageMetadata, rows: range) -> Tensor:
        """Rows of what one rank wrote of a tensor, of one layer; rows count in the whole tensor."""
        axis = 0 if layer is None else 1
        first = [] if layer is None else [layer - chunk.offsets[0]]
        start = rows.start - chunk.offsets[axis]
        return self._archive(name, chunk).map(first, slice(start, start + len(rows)))

    def _archive(self, name: str, chunk: ChunkStorageMetadata) -> _Archive:
        index = MetadataIndex(_stored_name(name), chunk.offsets)
        if index not in self._archives:
            place = self._metadata.storage_data[index]
            self._archives[index] = _Archive.at(self.folder / place.relative_path, place.offset, place.length)
        return self._archives[index]

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


def _common(rows: range, start: int, size: int) -> range:
    """Those of the rows that lie in a part."""
    return range(max(rows.start, start), min(rows.stop, start + size))


@dataclass(frozen=True)
class _Archive:
    """Where the data of one archive lie, and how."""

    path: Path
    start: int
    """Byte of its first element."""
    num_elements: int
    layout: Tensor
    """Without data."""

    @classmethod
    def at(cls, path: Path, offset: int, length: int) -> _Archive:
        """The archive of `length` bytes at `offset`."""
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
        return cls(path, start, record.file_size // layout.dtype.itemsize, layout)

    def map(self, first: list[int], rows: slice) -> Tensor:
        """Rows of its tensor (of `tensor[first]`), their data mapped from the file."""
        wanted = self.layout[(*first, rows)]
        offset, size = wanted.storage_offset(), wanted.numel()
        if not wanted.is_contiguous():
            offset, size = 0, self.num_elements
        data = map_tensor(self.path, self.start + offset * wanted.dtype.itemsize, size, wanted.dtype, whole=True)
        return data.as_strided(wanted.size(), wanted.stride(), wanted.storage_offset() - offset)


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
