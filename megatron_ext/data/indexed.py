"""Megatron indexed datasets: `<prefix>.bin` (all token ids) and `<prefix>.idx` (where each sequence lies).

`.idx`, little-endian: magic (9 bytes), version (uint64, 1), integer type (uint8 code), number of sequences n (uint64),
number of document boundaries d (uint64), sequence lengths int32 [n], byte offsets of the sequences int64 [n], document
boundaries int64 [d] (the first is 0, the last is n).

A document of ours is one sequence; an empty one is a boundary without a sequence, as Megatron-LM writes it.
"""

from __future__ import annotations

import os
import shutil
import struct
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from megatron_ext.errors import UserError
from megatron_ext.files import replacing, temporary_path

_MAGIC = b"MMIDIDX\x00\x00"
_VERSION = 1
_HEADER = struct.Struct("<9sQBQQ")
_TYPES = {1: np.uint8, 2: np.int8, 3: np.int16, 4: np.int32, 5: np.int64, 6: np.float64, 7: np.float32, 8: np.uint16}
_CODES = {np.dtype(dtype): code for code, dtype in _TYPES.items()}
_CHECKED_TOGETHER = 2**22  # sequences or boundaries: what checking a large index takes of memory
_UINT16_VOCAB_LIMIT = 65_500  # Megatron-LM's own bound, below the 65,536 that would fit


def token_dtype(vocab_size: int) -> np.dtype:
    """The integer type in which Megatron-LM stores ids of a vocabulary of this size."""
    return np.dtype(np.uint16 if vocab_size < _UINT16_VOCAB_LIMIT else np.int32)


def bin_path(prefix: Path) -> Path:
    """`<prefix>.bin`."""
    return prefix.with_name(prefix.name + ".bin")


def idx_path(prefix: Path) -> Path:
    """`<prefix>.idx`."""
    return prefix.with_name(prefix.name + ".idx")


def write_index(path: Path, document_lengths: np.ndarray | Iterable[np.ndarray], dtype: np.dtype) -> None:
    """Write an `.idx` atomically.

    Args:
        document_lengths: tokens of every document in the order of the `.bin`, `[num_documents]`; 0 for an empty one.
            An iterable of such arrays is written piece by piece, in the memory of one.
        dtype: integer type of the `.bin`.
    """
    pieces = [document_lengths] if isinstance(document_lengths, np.ndarray) else document_lengths
    columns = [temporary_path(path) for _ in ("lengths", "offsets", "boundaries")]
    with ExitStack() as stack:
        files = [stack.enter_context(open(column, "wb")) for column in columns]
        files[2].write(np.zeros(1, dtype=np.int64))
        num_sequences = num_documents = num_tokens = 0
        for piece in pieces:
            present = piece > 0
            lengths = piece[present].astype(np.int32)
            ends = num_tokens + np.cumsum(lengths, dtype=np.int64)
            files[0].write(lengths)
            files[1].write((ends - lengths) * np.dtype(dtype).itemsize)
            files[2].write(num_sequences + np.cumsum(present, dtype=np.int64))
            num_sequences, num_documents = num_sequences + len(lengths), num_documents + len(piece)
            num_tokens += int(lengths.sum(dtype=np.int64))
    header = _HEADER.pack(_MAGIC, _VERSION, _CODES[np.dtype(dtype)], num_sequences, num_documents + 1)
    _join_columns(path, header, columns)


def _join_columns(path: Path, header: bytes, columns: Sequence[Path]) -> None:
    with replacing(path) as temporary, open(temporary, "wb") as joined:
        joined.write(header)
        for column in columns:
            with open(column, "rb") as file:
                shutil.copyfileobj(file, joined, 2**20)
    for column in columns:
        column.unlink()


class IndexedReader:
    """Random access to an indexed dataset; nothing is read before it is asked for.

    Opening checks everything that the sizes and the `.idx` can tell. Raises UserError that names the damage.
    """

    def __init__(self, prefix: Path | str) -> None:
        self.prefix = Path(prefix)
        self._idx, self._bin = idx_path(self.prefix), bin_path(self.prefix)
        for path in (self._idx, self._bin):
            if not path.is_file():
                raise UserError(f"{path} does not exist; an indexed dataset is named by its path without .bin/.idx")
        code, num_sequences = self._read_header()
        self.dtype = np.dtype(_TYPES[code])
        index = _map(self._idx)
        lengths_end = _HEADER.size + 4 * num_sequences
        offsets_end = lengths_end + 8 * num_sequences
        self.sequence_lengths = index[_HEADER.size:lengths_end].view(np.int32)
        """Tokens of each sequence, int32 `[n]`."""
        self.sequence_offsets = index[lengths_end:offsets_end].view(np.int64)
        """Byte offset of each sequence in the `.bin`, int64 `[n]`."""
        self.document_boundaries = index[offsets_end:].view(np.int64)
        """Document i is the sequences from boundary i to boundary i + 1, int64 `[num_documents + 1]`."""
        self._check_index()
        self._tokens = _map(self._bin).view(self.dtype)
        self._file = open(self._bin, "rb", buffering=0)  # noqa: SIM115  (as long as the reader)

    def __len__(self) -> int:
        return len(self.sequence_lengths)

    @property
    def num_documents(self) -> int:
        """Documents, empty ones included."""
        return len(self.document_boundaries) - 1

    @property
    def num_tokens(self) -> int:
        """Tokens in all sequences."""
        return len(self._tokens)

    def read(self, sequence: int, start: int = 0, num_tokens: int | None = None) -> np.ndarray:
        """Ids of one sequence, or of `num_tokens` of it from `start` on, type `self.dtype`.

        Raises UserError where the file has lost them since it was opened; touching them in a map would end the process.
        """
        length = int(self.sequence_lengths[sequence])
        count = length - start if num_tokens is None else num_tokens
        if start < 0 or count < 0 or start + count > length:
            raise IndexError(f"tokens {start} to {start + count} of sequence {sequence}, which has {length}")
        place = int(self.sequence_offsets[sequence]) + start * self.dtype.itemsize
        try:
            data = os.pread(self._file.fileno(), count * self.dtype.itemsize, place)
        except OSError as error:
            raise UserError(f"{self._bin} cannot be read at byte {place:,}: {error.strerror}") from error
        if len(data) < count * self.dtype.itemsize:
            raise UserError(f"{self._bin} ends at byte {place + len(data):,}: it has been cut off since it was opened")
        return np.frombuffer(data, dtype=self.dtype)

    def document_ends(self, first: int, last: int) -> np.ndarray:
        """Position in the `.bin`, in tokens, where each of the documents `first` to `last` ends, int64."""
        sequences = self.document_boundaries[first + 1:last + 1]
        ends = np.full(len(sequences), self.num_tokens, dtype=np.int64)
        inside = sequences < len(self)
        ends[inside] = self.sequence_offsets[sequences[inside]] // self.dtype.itemsize
        return ends

    def tokens(self, start: int, end: int) -> np.ndarray:
        """The ids at the positions `start` to `end` of the `.bin`; a view of the file."""
        return self._tokens[start:end]

    def expect_random_reads(self) -> None:
        """Tell the system that reads jump about: reading ahead of each would cost a hundred times the read itself."""
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)

    def largest_token_id(self, chunk_tokens: int = 2**24) -> int:
        """The largest id in the `.bin` (-1 when it is empty); reads all of it."""
        return max((int(self._tokens[i:i + chunk_tokens].max()) for i in range(0, self.num_tokens, chunk_tokens)),
                   default=-1)

    def _read_header(self) -> tuple[int, int]:
        """Type code and number of sequences, after checking them against the size of the file."""
        size = self._idx.stat().st_size
        if size < _HEADER.size:
            raise UserError(f"{self._idx} is truncated: {size} bytes, the header alone has {_HEADER.size}")
        with open(self._idx, "rb") as file:
            magic, version, code, num_sequences, num_boundaries = _HEADER.unpack(file.read(_HEADER.size))
        if magic != _MAGIC:
            raise UserError(f"{self._idx} is not a Megatron index: it starts with {magic!r} instead of {_MAGIC!r}")
        if version != _VERSION:
            raise UserError(f"{self._idx} has index version {version}; only version {_VERSION} is known")
        if code not in _TYPES or _TYPES[code] in (np.float32, np.float64):
            raise UserError(f"{self._idx} names integer type code {code}, which is unknown: the header is damaged")
        needed = _HEADER.size + 12 * num_sequences + 8 * num_boundaries
        if size == needed + num_sequences and num_sequences:
            raise UserError(f"{self._idx} is a multimodal index (with a mode for each sequence): not supported")
        if size != needed:
            state = "is truncated" if size < needed else "has bytes too many"
            raise UserError(f"{self._idx} {state}: {size:,} bytes, but {num_sequences:,} sequences and "
                            f"{num_boundaries:,} document boundaries take {needed:,}")
        return code, num_sequences

    def _check_index(self) -> None:
        needed = self._check_offsets()
        self._check_boundaries()
        size = self._bin.stat().st_size
        if size != needed:
            state = "is truncated" if size < needed else "has bytes too many"
            raise UserError(f"{self._bin} {state}: {size:,} bytes, but its index describes {needed:,}")

    def _check_offsets(self) -> int:
        """The bytes that the sequences take, after checking that each begins where the one before ends."""
        end = 0
        for first in range(0, len(self), _CHECKED_TOGETHER):
            lengths = self.sequence_lengths[first:first + _CHECKED_TOGETHER]
            ends = end + np.cumsum(lengths, dtype=np.int64) * self.dtype.itemsize
            expected = np.concatenate([[end], ends[:-1]])
            wrong = (lengths < 0) | (self.sequence_offsets[first:first + _CHECKED_TOGETHER] != expected)
            if wrong.any():
                raise UserError(f"{self._idx} is damaged: its sequence offsets do not follow from the lengths, "
                                f"first at sequence {first + int(wrong.argmax()):,}")
            end = int(ends[-1])
        return end

    def _check_boundaries(self) -> None:
        boundaries = self.document_boundaries
        ordered = all(np.all(np.diff(boundaries[first:first + _CHECKED_TOGETHER + 1]) >= 0)
                      for first in range(0, len(boundaries), _CHECKED_TOGETHER))
        if not len(boundaries) or boundaries[0] != 0 or boundaries[-1] != len(self) or not ordered:
            raise UserError(f"{self._idx} is damaged: its document boundaries do not run from 0 to the "
                            f"{len(self):,} sequences")


def _map(path: Path) -> np.ndarray:
    """The bytes of a file, uint8, memory-mapped (which an empty file cannot be)."""
    return np.memmap(path, dtype=np.uint8, mode="r") if path.stat().st_size else np.empty(0, dtype=np.uint8)
