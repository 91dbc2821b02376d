"""sha256 of files: of finished ones, and of those that are being written, which need not be read again."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from threading import Condition, Thread
from types import TracebackType
from typing import Any

from megatron_ext.files import temporary_path

_BLOCK_BYTES = 1 << 20  # one call for a large tensor takes twice the time on Linux: its pages leave the caches
_FLUSH_BYTES = 1 << 26
_known: dict[tuple[int, ...], str] = {}


def hash_file(path: Path) -> str:
    """sha256 of a file, hexadecimal; every byte of it is read."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_new_file(path: Path) -> str:
    """sha256 of a file, hexadecimal; of one that this process wrote as a HashedFile it is known already."""
    return _known.get(_stamp(os.stat(path))) or hash_file(path)


class HashedFile:
    """A file to write to that appears under its name whole, durable and hashed, when its `with` block ends well.

    While it is written, one thread hashes what is there and another flushes it to the disk: neither is waited for
    before the end.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._temporary = temporary_path(path)
        self._digest = hashlib.sha256()
        self._written = 0
        self._ended = False
        self._changed = Condition()
        self._followers = [Thread(target=self._follow, args=arguments, daemon=True)
                           for arguments in ((self._hash, _BLOCK_BYTES), (self._flush, _FLUSH_BYTES))]

    def __enter__(self) -> HashedFile:
        self._file = open(self._temporary, "w+b", buffering=0)
        for follower in self._followers:
            follower.start()
        return self

    def write(self, data: Any) -> int:
        """Write bytes, or the memory of an array."""
        view = memoryview(data).cast("B")
        for start in range(0, len(view), _BLOCK_BYTES):
            self._write_all(view[start:start + _BLOCK_BYTES])
        return len(view)

    def tell(self) -> int:
        """Bytes written so far."""
        return self._written

    def flush(self) -> None:
        """Nothing: there is no buffer."""

    def __exit__(self, error: type[BaseException] | None, value: BaseException | None,
                 traceback: TracebackType | None) -> None:
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        for follower in self._followers:
            follower.join()
        with self._file:
            if error is not None:
                self._temporary.unlink(missing_ok=True)
                return
            os.fsync(self._file.fileno())
        _known[_stamp(os.stat(self._temporary))] = self._digest.hexdigest()
        os.replace(self._temporary, self._path)

    def _write_all(self, view: memoryview) -> None:
        while view:
            num_bytes = self._file.write(view)
            view = view[num_bytes:]
            with self._changed:
                self._written += num_bytes
                self._changed.notify_all()

    def _follow(self, act: Callable[[int, int], None], step_bytes: int) -> None:
        """Call `act(start, end)` for what is written, `step_bytes` at a time or more, and for the rest at the end."""
        done, more = 0, True
        while more:
            more, end = self._wait_for(done + step_bytes)
            if end > done:
                act(done, end)
            done = end

    def _wait_for(self, num_bytes: int) -> tuple[bool, int]:
        """Wait until so much is written or all is; returns whether more can come, and how much is written."""
        with self._changed:
            self._changed.wait_for(lambda: self._ended or self._written >= num_bytes)
            return not self._ended, self._written

    def _hash(self, start: int, end: int) -> None:
        block = memoryview(bytearray(_BLOCK_BYTES))
        while start < end:
            num_bytes = os.preadv(self._file.fileno(), [block[:end - start]], start)
            self._digest.update(block[:num_bytes])
            start += num_bytes

    def _flush(self, start: int, end: int) -> None:
        os.fdatasync(self._file.fileno())


def _stamp(stat: os.stat_result) -> tuple[int, ...]:
    """What changes when a file does, and stays when it is renamed."""
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns
