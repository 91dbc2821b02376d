"""Which files a corpus consists of: its shards, in order, and what else lies there.

Shards are named `*.parquet`, or `*.jsonl`, `*.ndjson`, `*.json`, plain or with one of the suffixes of compression
(`.gz`, `.zst`, …), in capitals or not. A `.json` file is one when its first values are documents: a table, not the
`dataset_info.json` of a data set. Links are followed. What begins with `_` or `.` is not committed, or not meant for
readers. All else is left out by name; a table that is packed in a way that cannot be read is refused.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Literal

from megatron_ext.data.columns import look_up
from megatron_ext.data.documents import DOCUMENTS_FOLDER
from megatron_ext.data.streams import COMPRESSIONS, Location, json_values, open_bytes
from megatron_ext.errors import UserError

Format = Literal["parquet", "lines", "json"]
Place = str | Path | Sequence[str | Path]
"""A file, a folder, a glob pattern, or several of them."""
_FORMATS: dict[str, Format] = {".parquet": "parquet", ".jsonl": "lines", ".ndjson": "lines", ".json": "json"}
_UNREADABLE = (".zip", ".7z", ".rar", ".tar", ".br", ".lzo", ".snappy", ".z", ".tgz")
_FIRST_PART = "part-00000.parquet"
_JUDGED_VALUES = 100  # of a .json file, which is a shard when there is a document among them
_TOLD_NAMES = 5
NEEDED = (f"needed: a file, a folder, or a pattern of files named *{', *'.join(_FORMATS)}, JSON plain or with "
          f"{', '.join(COMPRESSIONS)}")


@dataclass(frozen=True)
class Shards:
    """The files of a corpus."""

    paths: list[Path]
    left_out: dict[str, str] = field(default_factory=dict)
    """Name -> why it is no shard."""

    @property
    def num_bytes(self) -> int:
        """Size of all shards on disk."""
        return sum(path.stat().st_size for path in self.paths)

    def __str__(self) -> str:
        told = f"{len(self.paths):,} shard{'s' * (len(self.paths) != 1)}, {self.num_bytes:,} bytes"
        return f"{told}, left out: {_in_words(self.left_out)}" if self.left_out else told


def format_of(location: Location) -> Format | None:
    """How a file's name says that it is to be read; None for what is no shard."""
    name, compression = split_compression(location)
    kind = _FORMATS.get(os.path.splitext(name)[1])
    return None if kind == "parquet" and compression else kind


def split_compression(location: Location) -> tuple[str, str]:
    """A file's name in small letters without the suffix of its compression, and that suffix ("" without one)."""
    name = str(location).rsplit("/", 1)[-1].lower()
    stem, suffix = os.path.splitext(name)
    return (stem, suffix) if suffix in COMPRESSIONS else (name, "")


def corpus_shards(place: Place, text_column: str = "text") -> Shards:
    """The shards of a corpus: those of each place in order, of a folder by their paths.

    Of a documents artifact (the output of selection or rewriting), those below `documents/`.

    Args:
        text_column: what a value of a `.json` file has to have to be a document.

    Raises UserError when a place does not exist or holds no shards, and for a table that cannot be read.
    """
    places = [place] if isinstance(place, str | Path) else list(place)
    found = [_shards_of(one, text_column) for one in places]
    paths: dict[str, Path] = {}  # by what they really are
    left_out = {name: why for shards in found for name, why in shards.left_out.items()}
    for path in (path for shards in found for path in shards.paths):
        first = paths.setdefault(os.path.realpath(path), path)
        if first is not path:
            left_out[str(path)] = f"the same file as {first}"
    return Shards(list(paths.values()), left_out)


def is_documents_artifact(root: Path) -> bool:
    """Whether a folder is the output of selection or rewriting."""
    return (root / DOCUMENTS_FOLDER / _FIRST_PART).is_file()


def expanded(place: str | Path) -> list[Path]:
    """The files and folders that a place names; a pattern may name many.

    Raises UserError when there are none.
    """
    path = Path(place).expanduser()
    if path.exists():
        return [path]
    if not glob.has_magic(str(path)):
        raise UserError(f"corpus {path} does not exist; {NEEDED}")
    fixed = len(_without_magic(path).parts)
    found = [match for match in map(Path, sorted(glob.glob(str(path), recursive=True)))
             if not _is_hidden(match.parts[fixed:])]
    if not found:
        raise UserError(f"corpus {path}: nothing matches this pattern; {NEEDED}")
    return found


def _without_magic(pattern: Path) -> Path:
    return next(parent for parent in pattern.parents if not glob.has_magic(str(parent)))


def _shards_of(place: str | Path, text_column: str) -> Shards:
    roots = expanded(place)
    paths: list[Path] = []
    left_out: dict[str, str] = {}
    for root in roots:
        if root.is_file():
            reason = _why_no_shard(root, text_column)
            if reason and len(roots) == 1:
                raise UserError(f"corpus {root} holds no shards: it is {reason}; {NEEDED}")
            if reason:
                left_out[root.name] = reason
            else:
                paths.append(root)
            continue
        found = _below(root, text_column)
        paths += found.paths
        left_out |= found.left_out
    if not paths:
        there = f"; left out: {_in_words(left_out)}" if left_out else ""
        raise UserError(f"corpus {place} holds no shards{there}; {NEEDED}")
    return Shards(paths, left_out)


def _below(root: Path, text_column: str) -> Shards:
    """The shards of a folder."""
    paths: list[Path] = []
    left_out: dict[str, str] = {}
    is_artifact = is_documents_artifact(root)
    for path in _files(root, left_out):
        name = str(path.relative_to(root))
        reason = "no file of documents/" if is_artifact and not name.startswith(DOCUMENTS_FOLDER + os.sep) \
            else _why_no_shard(path, text_column)
        if reason:
            left_out[name] = reason
        else:
            paths.append(path)
    return Shards(sorted(paths, key=lambda path: path.relative_to(root).parts), left_out)


def _files(root: Path, left_out: dict[str, str]) -> Iterator[Path]:
    """The files below a folder, links followed, each folder once; says in `left_out` what is hidden."""
    seen: set[str] = set()
    for folder, folders, names in os.walk(root, followlinks=True):
        place = Path(folder)
        seen.add(os.path.realpath(folder))
        for name in [*folders, *names]:
            if _is_hidden([name]):
                left_out[str((place / name).relative_to(root))] = "hidden"
        repeated = {name for name in folders if os.path.realpath(place / name) in seen}
        left_out |= {str((place / name).relative_to(root)): "a link to a folder that is read anyway"
                     for name in repeated}
        folders[:] = sorted(name for name in folders if not _is_hidden([name]) and name not in repeated)
        yield from (place / name for name in sorted(names) if not _is_hidden([name]))


def _why_no_shard(path: Path, text_column: str) -> str | None:
    """Raises UserError for a table of documents that cannot be read."""
    kind = format_of(path)
    if kind and not path.exists():
        raise UserError(f"{path} is a link to {os.readlink(path)}, which does not exist")
    if kind is None:
        stem, suffix = os.path.splitext(path.name.lower())
        packed = suffix in (*_UNREADABLE, *COMPRESSIONS) and os.path.splitext(stem)[1] in _FORMATS
        if packed:
            raise UserError(f"{path} is a table packed as {suffix}, which cannot be read; unpack it, or leave it out "
                            f"by a pattern; {NEEDED}")
        return "another kind of file"
    if kind == "json" and path.stat().st_size and not _holds_documents(path, text_column):
        return f"no table of documents: no {text_column!r} in its first values"
    return None


def _holds_documents(path: Path, text_column: str) -> bool:
    with open_bytes(path) as stream:
        values = (value for _, _, value in islice(json_values(stream, path), _JUDGED_VALUES))
        return any(isinstance(value, dict) and look_up(value, text_column) is not None for value in values)


def _is_hidden(parts: Sequence[str]) -> bool:
    return any(part.startswith(("_", ".")) for part in parts)


def _in_words(left_out: dict[str, str]) -> str:
    hidden = [name for name, why in left_out.items() if why == "hidden"]
    others = [name for name, why in left_out.items() if why != "hidden"]
    told = [f"{name} ({left_out[name]})" for name in others[:_TOLD_NAMES]]
    told += [f"{len(others) - _TOLD_NAMES:,} more"] if len(others) > _TOLD_NAMES else []
    if hidden:
        more = ", …" if len(hidden) > _TOLD_NAMES else ""
        told.append(f"{len(hidden):,} whose names begin with _ or . ({', '.join(hidden[:_TOLD_NAMES])}{more})")
    return ", ".join(told)
