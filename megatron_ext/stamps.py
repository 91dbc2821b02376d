"""Which bytes a file held when this machine last read it, so that an unchanged one is not read again.

A file's stamp (device, inode, size, times of modification and of change) is noted with its sha256 in the user's cache:
one small file a folder and machine, nothing in the folder itself. Folders are told apart by their inodes, so that a
renamed one keeps its notes. The cache is a convenience: where it is missing, damaged or cannot be written, files are
read again; when two processes write one note, the last one's stays.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron_ext.files import write_text

Stamp = tuple[int, int, int, int, int]
_GRAIN_NS = 20_000_000  # clocks of file systems tick every 1 to 10 ms …
_COARSE_GRAIN_NS = 2_000_000_000  # … or every one or two seconds, and then show whole seconds


def stamp(path: Path | str) -> Stamp:
    """What differs after any change of a file, also one that keeps its size and modification time."""
    return stamp_of(os.stat(path))


def stamp_of(stat: os.stat_result) -> Stamp:
    """The stamp in what the system tells of a file."""
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


class KnownHashes:
    """The noted hashes of a folder's files, by name."""

    def __init__(self, folder: Path) -> None:
        self._file = _cache_file(folder)
        self._notes = _read(self._file)
        self._has_news = False

    def __contains__(self, name: str) -> bool:
        """Whether anything is noted, be it of an earlier state of the file."""
        return name in self._notes

    def get(self, name: str, now: Stamp) -> str | None:
        """sha256 of the file if it still carries the stamp with which it was hashed."""
        noted, hashed_ns, digest = self._notes.get(name, (None, 0, None))
        return digest if noted == list(now) and hashed_ns - now[4] > _grain_ns(now[4]) else None

    def note(self, name: str, before: Stamp, hashed_ns: int, digest: str) -> None:
        """Note the hash of a file that had this stamp before and after it was read from `hashed_ns` (since 1970) on."""
        self._notes[name] = [list(before), hashed_ns, digest]
        self._has_news = True

    def save(self) -> None:
        """Keep what is new, if the cache can be written."""
        if self._file is None or not self._has_news:
            return
        text = json.dumps({"files": self._notes, "sha256": _digest(self._notes)})
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            write_text(self._file, text)
        except OSError:
            self._file = None


def _grain_ns(time_ns: int) -> int:
    # A file that is changed again within one tick of the clock keeps its stamp: a hash from so soon is not trusted.
    return _GRAIN_NS if time_ns % 1_000_000_000 else _COARSE_GRAIN_NS


def _cache_file(folder: Path) -> Path | None:
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:  # nobody's home
        return None
    found = os.stat(folder)
    return cache / "megatron_ext" / "hashes" / platform.node() / f"{found.st_dev:x}-{found.st_ino:x}.json"


def _read(file: Path | None) -> dict[str, list[Any]]:
    if file is None:
        return {}
    try:
        noted = json.loads(file.read_bytes())
        notes = noted["files"]
        return notes if noted["sha256"] == _digest(notes) else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _digest(notes: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(notes, sort_keys=True).encode()).hexdigest()
