"""The files of a Hugging Face model folder: reading slices of its tensors, and writing tensors one after the other."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron_ext.artifacts import write_json
from megatron_ext.data.model_folder import NEEDED_FILES
from megatron_ext.errors import UserError
from megatron_ext.hashing import HashedFile
from megatron_ext.model.streaming import made_ahead, map_tensor

INDEX = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
_METADATA = (*NEEDED_FILES, "LICENSE*", "NOTICE*", "USE_POLICY*", "README.md")
_TYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
_TYPE_NAMES = {dtype: name for name, dtype in _TYPES.items()}


def copy_hf_metadata(hf_folder: Path, target: Path) -> None:
    """Copy config.json, generation config, tokenizer files and licences, byte for byte; nothing else: what lies beside
    them may be weights of any format."""
    target.mkdir(parents=True, exist_ok=True)
    for file in sorted(Path(hf_folder).iterdir()):
        if file.is_file() and any(fnmatchcase(file.name, pattern) for pattern in _METADATA):
            shutil.copyfile(file, target / file.name)


@dataclass(frozen=True)
class _Place:
    """Where a tensor lies."""

    file: str
    offset: int
    """Of its data, in bytes from the start of the file."""
    shape: tuple[int, ...]
    dtype: str
    """As safetensors names it."""


class HFTensors:
    """The tensors in a folder's safetensors files; nothing is read before a tensor is asked for.

    Raises UserError when there are none, a file is missing or damaged, or a tensor is not where the index says.
    """

    def __init__(self, folder: Path, whole: bool = False) -> None:
        """
        Args:
            whole: tensors are used as a whole, not in slices, which lets the disk read ahead.
        """
        self.folder = Path(folder)
        self._whole = whole
        self._places = {tensor: place for name in self._file_names() for tensor, place in self._read_header(name)}
        self._check_index()

    def names(self) -> set[str]:
        """Names of all tensors."""
        return set(self._places)

    def tensor(self, name: str) -> Tensor:
        """A tensor that stays in its file: of a slice of it, e.g. `tensor(name)[:, 10:20]`, no more is read."""
        place = self._places[name]
        if place.dtype not in _TYPES:
            raise UserError(f"{self.folder / place.file}: {name} {place.shape} is of type {place.dtype}; supported: "
                            f"{', '.join(_TYPES)}")
        num_elements = torch.Size(place.shape).numel()
        return map_tensor(self.folder / place.file, place.offset, num_elements, _TYPES[place.dtype],
                          self._whole).view(place.shape)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""
        return self._places[name].shape

    def _file_names(self) -> list[str]:
        if (self.folder / INDEX).exists():
            return sorted(set(self._index().values()))
        if (self.folder / SINGLE_FILE).exists():
            return [SINGLE_FILE]
        raise UserError(f"{self.folder} holds neither {SINGLE_FILE} nor {INDEX}; give a Hugging Face model folder with "
                        "safetensors weights, e.g. one made by tools.fetch_model")

    def _index(self) -> dict[str, str]:
        try:
            return json.loads((self.folder / INDEX).read_text())["weight_map"]
        except (ValueError, KeyError) as error:
            raise UserError(f"{self.folder / INDEX} is damaged ({error!r}); fetch the model again") from None

    def _read_header(self, name: str) -> Iterator[tuple[str, _Place]]:
        from safetensors import SafetensorError, safe_open

        try:
            safe_open(self.folder / name, framework="pt").keys()  # checks that the header and the data fit
        except FileNotFoundError:
            held = sorted(tensor for tensor, file in self._index().items() if file == name)
            raise UserError(f"{self.folder / name} is missing, in which {held[0]} and {len(held) - 1} other tensors "
                            "should be; fetch the model again") from None
        except SafetensorError as error:
            raise UserError(f"{self.folder / name} is damaged ({error}); fetch the model again") from None
        with open(self.folder / name, "rb") as file:
            header_bytes = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(header_bytes))
        header.pop("__metadata__", None)
        for tensor, entry in header.items():
            offset = 8 + header_bytes + entry["data_offsets"][0]
            yield tensor, _Place(name, offset, tuple(entry["shape"]), entry["dtype"])

    def _check_index(self) -> None:
        if not (self.folder / INDEX).exists():
            return
        lost = sorted(tensor for tensor, name in self._index().items()
                      if tensor not in self._places or self._places[tensor].file != name)
        if lost:
            raise UserError(f"{self.folder / INDEX}: {lost[0]} is not in {self._index()[lost[0]]} ({len(lost)} such "
                            "tensors); fetch the model again")


@dataclass(frozen=True)
class Piece:
    """Some tensors that are made together, and their names, shapes and type known beforehand."""

    names: Sequence[str]
    shapes: Sequence[tuple[int, ...]]
    dtype: torch.dtype
    make: Callable[[], Sequence[Tensor]]

    @property
    def num_bytes(self) -> int:
        """Bytes of all its tensors."""
        return sum(self.dtype.itemsize * torch.Size(shape).numel() for shape in self.shapes)


def write_hf_weights(folder: Path, pieces: Sequence[Piece], max_file_bytes: int) -> None:
    """Write safetensors files of at most `max_file_bytes` (more if one piece is larger) and their index.

    Only two pieces are in memory at a time. Files appear whole; those that are there already are not written again.
    """
    files = _distribute(pieces, max_file_bytes)
    weight_map = {}
    for number, contents in enumerate(files, start=1):
        name = f"model-{number:05d}-of-{len(files):05d}.safetensors" if len(files) > 1 else SINGLE_FILE
        weight_map |= {tensor: name for piece in contents for tensor in piece.names}
        if not (folder / name).exists():
            _write_safetensors(folder / name, contents)
    if len(files) > 1:
        total = sum(piece.num_bytes for piece in pieces)
        write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _distribute(pieces: Sequence[Piece], max_file_bytes: int) -> list[list[Piece]]:
    files: list[list[Piece]] = [[]]
    filled = 0
    for piece in pieces:
        if files[-1] and filled + piece.num_bytes > max_file_bytes:
            files.append([])
            filled = 0
        files[-1].append(piece)
        filled += piece.num_bytes
    return files


def _write_safetensors(path: Path, pieces: Sequence[Piece]) -> None:
    """The format's header is known beforehand, so tensors need not be collected (as safetensors' own writer does)."""
    header = json.dumps(_header(pieces), separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    with HashedFile(path) as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for tensor in _made(pieces):
            file.write(tensor.contiguous().view(torch.uint8).numpy())


def _header(pieces: Sequence[Piece]) -> dict[str, Any]:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for piece in pieces:
        for name, shape in zip(piece.names, piece.shapes, strict=True):
            end = offset + piece.dtype.itemsize * torch.Size(shape).numel()
            header[name] = {"dtype": _TYPE_NAMES[piece.dtype], "shape": list(shape), "data_offsets": [offset, end]}
            offset = end
    return header


def _made(pieces: Sequence[Piece]) -> Iterator[Tensor]:
    for piece, tensors in zip(pieces, made_ahead(piece.make for piece in pieces), strict=True):
        for tensor, shape in zip(tensors, piece.shapes, strict=True):
            assert tensor.shape == shape, (piece.names, tensor.shape, shape)
            yield tensor.to(piece.dtype)
