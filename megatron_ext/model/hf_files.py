"""The files of a Hugging Face model folder: reading slices of its tensors, and writing tensors one after the other."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron_ext.artifacts import MANIFEST, write_json
from megatron_ext.errors import UserError

INDEX = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
_WEIGHT_SUFFIXES = (".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json", ".pt", ".pth", ".gguf")
_WRITE_BYTES = 1 << 20  # one call for a large tensor takes twice the time on Linux: its pages leave the caches
_TYPE_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}


def copy_hf_metadata(hf_folder: Path, target: Path) -> None:
    """Copy config.json, generation config, tokenizer files and all else that is no weight, byte for byte."""
    target.mkdir(parents=True, exist_ok=True)
    for file in sorted(Path(hf_folder).iterdir()):
        is_weight = file.name.endswith(_WEIGHT_SUFFIXES)
        if file.is_file() and not is_weight and not file.name.startswith(".") and file.name != MANIFEST:
            shutil.copyfile(file, target / file.name)


class HFTensors:
    """The tensors in a folder's safetensors files; nothing is read before a slice is asked for.

    Raises UserError when there are none, a file is missing or damaged, or a tensor is not where the index says.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self._files = {name: self._open(name) for name in self._file_names()}
        self._place = {tensor: name for name, file in self._files.items() for tensor in file.keys()}  # noqa: SIM118
        self._check_index()

    def names(self) -> set[str]:
        """Names of all tensors."""
        return set(self._place)

    def slices(self, name: str) -> Any:
        """What reads slices of a tensor when it is indexed, e.g. `slices(name)[:, 10:20]`."""
        return self._files[self._place[name]].get_slice(name)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""
        return tuple(self.slices(name).get_shape())

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

    def _open(self, name: str) -> Any:
        from safetensors import SafetensorError, safe_open

        try:
            return safe_open(self.folder / name, framework="pt")
        except FileNotFoundError:
            raise UserError(f"{self.folder / name} is missing, though the index names it; fetch the model again"
                            ) from None
        except SafetensorError as error:
            raise UserError(f"{self.folder / name} is damaged ({error}); fetch the model again") from None

    def _check_index(self) -> None:
        if not (self.folder / INDEX).exists():
            return
        lost = sorted(tensor for tensor, name in self._index().items() if self._place.get(tensor) != name)
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

    Only one piece is in memory at a time. Files appear whole; those that are there already are not written again.
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
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for tensor in _made(pieces):
            data = memoryview(tensor.contiguous().view(torch.uint8).numpy()).cast("B")
            for start in range(0, len(data), _WRITE_BYTES):
                file.write(data[start:start + _WRITE_BYTES])
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


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
    for piece in pieces:
        for tensor, shape in zip(piece.make(), piece.shapes, strict=True):
            assert tensor.shape == shape, (piece.names, tensor.shape, shape)
            yield tensor.to(piece.dtype)
