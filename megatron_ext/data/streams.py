"""Files as streams of bytes, decompressed by their suffix, and JSON read from them in bounded memory."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import json
import lzma
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast

import pyarrow as pa

from megatron_ext.errors import UserError

Location = Path | str
"""A local file, or the address of a remote one."""
COMPRESSIONS = (".gz", ".zst", ".zstd", ".bz2", ".xz", ".lz4")
_BLOCK_BYTES = 2**20
_MAX_ZSTD_WINDOW = 2**31  # what `zstd --long=31` writes; the library's own limit is 128 MiB
_LONGEST_TOKEN = 16  # characters that a number, name or escape cut off at the end of a block may lack, and more
_MAX_VALUE_CHARS = 2**30
_GAP = re.compile(r"[\s,\ufeff]*")


def open_file(location: Location) -> BinaryIO:
    """A file's bytes as they are."""
    if isinstance(location, Path):
        return open(location, "rb")
    import fsspec

    return fsspec.open(location, "rb").open()


def open_bytes(location: Location, on_read: Callable[[int], None] | None = None) -> io.BufferedReader:
    """A file's bytes, decompressed by its suffix.

    Args:
        on_read: is told how many bytes of the file, as it lies there, were read, each time that some were.
    """
    name = str(location).lower()
    file = open_file(location)
    if on_read is not None:
        file = cast(BinaryIO, _Counted(file, on_read))
    if name.endswith((".zst", ".zstd")):
        return io.BufferedReader(_ZstdReader(file), _BLOCK_BYTES)
    if name.endswith(".lz4"):
        return io.BufferedReader(_Closing(pa.CompressedInputStream(pa.PythonFile(file), "lz4"), file), _BLOCK_BYTES)
    openers = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
    for suffix, opener in openers.items():
        if name.endswith(suffix):
            return io.BufferedReader(_Closing(opener(file), file), _BLOCK_BYTES)
    return io.BufferedReader(_Closing(file, file), _BLOCK_BYTES)


def is_damage(error: Exception) -> bool:
    """Whether an error of reading is the file's fault, not the disk's."""
    return not isinstance(error, OSError) or error.errno is None


DAMAGE = (OSError, EOFError, lzma.LZMAError, ValueError, ArithmeticError)
"""What decompressors raise."""


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


class _Closing(io.RawIOBase):
    """A stream that closes the file below it, too."""

    def __init__(self, stream: _Readable, file: BinaryIO) -> None:
        self._stream, self._file = stream, file

    def readable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Only what is not compressed."""
        return self._stream is self._file and self._file.seekable()

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """See io.RawIOBase."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """See io.RawIOBase."""
        return self._file.tell()

    def readinto(self, buffer: Any) -> int:
        """See io.RawIOBase."""
        data = self._stream.read(len(buffer))
        buffer[:len(data)] = data
        return len(data)

    def close(self) -> None:
        """Close both."""
        self._file.close()
        super().close()


class _Counted(_Closing):
    """A file that tells how much of it was read."""

    def __init__(self, file: BinaryIO, on_read: Callable[[int], None]) -> None:
        super().__init__(file, file)
        self._on_read = on_read

    def readinto(self, buffer: Any) -> int:
        """See io.RawIOBase."""
        count = super().readinto(buffer)
        self._on_read(count)
        return count


class _ZstdReader(io.RawIOBase):
    """Zstandard frames one after the other, with windows of any size; pyarrow's have at most 128 MiB."""

    def __init__(self, file: BinaryIO) -> None:
        import zstandard

        self._file = file
        self._error = zstandard.ZstdError
        self._decompressor = zstandard.ZstdDecompressor(max_window_size=_MAX_ZSTD_WINDOW)
        self._frame: Any = None
        self._input = self._output = b""

    def readable(self) -> bool:
        """Yes."""
        return True

    def readinto(self, buffer: Any) -> int:
        """See io.RawIOBase. Raises OSError for a damaged or cut off frame."""
        while not self._output:
            self._input = self._input or self._file.read(2**16)
            if not self._input:
                if self._frame is not None:
                    raise OSError("the last zstd frame is cut off")
                return 0
            self._decompress()
        count = min(len(buffer), len(self._output))
        buffer[:count] = self._output[:count]
        self._output = self._output[count:]
        return count

    def close(self) -> None:
        """Close the file, too."""
        self._file.close()
        super().close()

    def _decompress(self) -> None:
        self._frame = self._frame or self._decompressor.decompressobj()
        try:
            self._output = memoryview(self._frame.decompress(self._input))
        except self._error as error:
            raise OSError(str(error)) from None
        self._input = self._frame.unused_data if self._frame.eof else b""
        if self._frame.eof:
            self._frame = None


def json_values(stream: BinaryIO, location: Location) -> Iterator[tuple[int, int, Any]]:
    """(number from 0, characters, value) of the values of a JSON file: those of one array, or one after the other.

    Raises UserError for what is no JSON, or not UTF-8.
    """
    blocks = _Blocks(stream, location)
    is_array = blocks.skip_gap() == "["
    blocks.place += is_array
    number = 0
    while (head := blocks.skip_gap()) and not (is_array and head == "]"):
        num_chars, value = blocks.next_value(number)
        yield number, num_chars, value
        number += 1
    if is_array and not head:
        raise UserError(f"{location} is damaged or cut off: its array has no end")


class _Blocks:
    """The text of a stream as far as it is needed."""

    def __init__(self, stream: BinaryIO, location: Location) -> None:
        self.text, self.place = "", 0
        self._stream, self._location = stream, location
        self._json = json.JSONDecoder()
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._is_at_end = False

    def skip_gap(self) -> str:
        """Go on to the next value; returns its first character, "" at the end."""
        while True:
            self.place = _GAP.match(self.text, self.place).end()  # type: ignore[union-attr]
            if self.place < len(self.text):
                return self.text[self.place]
            if not self.read_more():
                return ""

    def next_value(self, number: int) -> tuple[int, Any]:
        """(its characters, the value) that begins here."""
        while True:
            try:
                value, end = self._json.raw_decode(self.text, self.place)
            except json.JSONDecodeError as error:
                if self._may_be_cut(error) and self.read_more():
                    continue
                raise UserError(f"{self._location}: value {number:,} (counted from 0) is not JSON: "
                                f"{error.msg}") from None
            num_chars, self.place = end - self.place, end
            return num_chars, value

    def _may_be_cut(self, error: json.JSONDecodeError) -> bool:
        is_at_end = error.pos >= len(self.text.rstrip()) - _LONGEST_TOKEN
        return (is_at_end or error.msg.startswith("Unterminated string")) and len(self.text) < _MAX_VALUE_CHARS

    def read_more(self) -> bool:
        """Append as much as there is left, at least a block; False at the end of the file."""
        if self._is_at_end:
            return False
        rest = self.text[self.place:]
        try:
            block = self._stream.read(max(_BLOCK_BYTES, len(rest)))  # doubled: a large value is tried few times
            self._is_at_end = not block
            self.text, self.place = rest + self._decoder.decode(block, self._is_at_end), 0
        except UnicodeDecodeError as error:
            raise UserError(f"{self._location} is not UTF-8: {error.reason}") from None
        except DAMAGE as error:
            if not is_damage(error):
                raise
            raise UserError(f"{self._location} is damaged or cut off: {error}") from None
        return not self._is_at_end
