"""What files and folders hold, by hash: of all files at once, read in parallel and only where they are not known."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from stat import S_ISREG
from typing import Any

from megatron_ext.hashing import hash_file
from megatron_ext.progress import ByteProgress
from megatron_ext.stamps import KnownHashes, Stamp, stamp, stamp_of

_TOLD_BYTES = 1 << 32  # reading so much takes long enough to be told of
_SHORT = 12


BESIDE = "beside"
"""Key of a file's entry in a manifest that tells of the making and is no payload."""


def content_hash(files: Mapping[str, Mapping[str, Any]]) -> str:
    """sha256 of the sorted `name sha256` lines of the payload among a manifest's `files`; of an artifact inside (the
    entry of its manifest) its content hash counts."""
    lines = "".join(f"{name} {files[name].get('content_hash', files[name]['sha256'])}\n"
                    for name in sorted(files) if BESIDE not in files[name])
    return hashlib.sha256(lines.encode(errors="surrogateescape")).hexdigest()


def hash_json(value: Any) -> str:
    """sha256 of a JSON-able value in canonical form."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def plain_content_hash(path: Path, cached: bool = True) -> str:
    """Hash of a plain file, or of all files below a plain folder, whatever their names and makers.

    Args:
        cached: files that this machine has read, and that have not changed since, are not read again.
    """
    folder, names = (path.parent, [path.name]) if path.is_file() else (path, list(plain_files(path)))
    known = KnownHashes(folder) if cached else None
    digests = _hash_files(folder, names, known)
    if path.is_file():
        return digests[path.name]
    return content_hash({name: {"sha256": digest} for name, digest in digests.items()})


def file_hashes(paths: Sequence[Path]) -> dict[Path, str]:
    """sha256 of files; those that this machine has read, and that have not changed since, are not read again."""
    folders = sorted({path.parent for path in paths})
    return {folder / name: digest for folder in folders
            for name, digest in _hash_files(folder, [path.name for path in paths if path.parent == folder],
                                            KnownHashes(folder)).items()}


def plain_files(folder: Path) -> Iterator[str]:
    """Names, relative to `folder`, of all regular files below it, through links to folders too."""
    for path in sorted(_regular_files(str(folder), ())):
        yield os.path.relpath(path, folder)


def changed_files(folder: Path, files: Mapping[str, Mapping[str, Any]], unknown_too: bool) -> list[str]:
    """One line for each file that is not what a manifest's `files` say (an empty list: all is well).

    Sizes and stamps are looked at, and what they do not vouch for is read. Files of which this machine has noted no
    stamp yet, as in a tree that was copied here, are read only with `unknown_too`.
    """
    problems, stamps = [], {}
    for name, entry in files.items():
        found = _stamp_of_regular(os.path.join(folder, name))
        if found is None:
            problems.append(f"{folder / name} is missing")
        elif found[2] != entry["bytes"]:
            problems.append(f"{folder / name} has {found[2]:,} bytes instead of {entry['bytes']:,}")
        else:
            stamps[name] = found
    known = KnownHashes(folder)
    doubtful = [name for name, now in stamps.items() if known.get(name, now) != files[name]["sha256"]
                and (unknown_too or name in known)]
    for name, digest in _read_files(folder, doubtful, known, lambda name: files[name]["sha256"]).items():
        if digest != files[name]["sha256"]:
            problems.append(f"{folder / name} has other bytes than when it was made (sha256 {digest[:_SHORT]} instead "
                            f"of {files[name]['sha256'][:_SHORT]})")
    known.save()
    return problems


def note_hashes(folder: Path, files: Mapping[str, Mapping[str, Any]], hashed_ns: int) -> None:
    """Note the stamps of files that were just made, hashed from `hashed_ns` on, and put in place."""
    known = KnownHashes(folder)
    for name, entry in files.items():
        known.note(name, stamp(os.path.join(folder, name)), hashed_ns, entry["sha256"])
    known.save()


def map_files(function: Callable[[Path], str], paths: Sequence[Path]) -> list[str]:
    """A hash for each file, in parallel, with progress where it takes long."""
    sizes = [os.stat(path).st_size for path in paths]
    total = sum(sizes)
    progress = ByteProgress("hashing", total) if total >= _TOLD_BYTES else None
    digests = []
    with ThreadPoolExecutor(max_workers=num_cores()) as pool:  # hashing lets other threads run
        for size, digest in zip(sizes, pool.map(function, paths), strict=True):
            if progress:
                progress.advance(size)
            digests.append(digest)
    return digests


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _hash_files(folder: Path, names: Sequence[str], known: KnownHashes | None) -> dict[str, str]:
    """name -> sha256 of files below `folder`."""
    if known is None:
        return dict(zip(names, map_files(hash_file, [folder / name for name in names]), strict=True))
    digests = {name: known.get(name, stamp(os.path.join(folder, name))) for name in names}
    digests |= _read_files(folder, [name for name, digest in digests.items() if digest is None], known)
    known.save()
    return {name: digest for name, digest in digests.items() if digest is not None}


def _read_files(folder: Path, names: Sequence[str], known: KnownHashes,
                expected: Callable[[str], str] | None = None) -> dict[str, str]:
    """name -> sha256, read now; noted unless the file changed meanwhile or is not what is expected."""
    before = {name: stamp(os.path.join(folder, name)) for name in names}
    hashed_ns = time.time_ns()
    digests = dict(zip(names, map_files(hash_file, [folder / name for name in names]), strict=True))
    for name, digest in digests.items():
        is_expected = expected is None or expected(name) == digest
        if is_expected and stamp(os.path.join(folder, name)) == before[name]:
            known.note(name, before[name], hashed_ns, digest)
    return digests


def _stamp_of_regular(path: str) -> Stamp | None:
    try:
        found = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return stamp_of(found) if S_ISREG(found.st_mode) else None


def _regular_files(folder: str, above: tuple[str, ...]) -> Iterator[str]:
    place = os.path.realpath(folder)
    if place in above:  # a link to a folder that it lies in
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir():
                yield from _regular_files(entry.path, (*above, place))
            elif entry.is_file():
                yield entry.path
