"""Files that appear whole or not at all.

A file is written under a temporary name of its own beside its place, flushed and renamed. Names of temporary files are
unique, so writers never share one, and recognisable, so what a killed writer left is removed and never published.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from megatron_ext.errors import UserError

_TEMPORARY = re.compile(r".+\.[0-9a-f]{12}\.tmp")
_FICLONE = 0x40049409  # from linux/fs.h


def temporary_path(path: Path) -> Path:
    """A name for what will become `path`, in the same folder, that nothing else has."""
    return path.with_name(f"{path.name}.{secrets.token_hex(6)}.tmp")


def is_temporary(name: str) -> bool:
    """Whether a file's name is one of `temporary_path`."""
    return _TEMPORARY.fullmatch(name) is not None


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path to write to; it becomes `path` when the `with` block ends well, and goes when it does not."""
    temporary = temporary_path(path)
    try:
        yield temporary
        flush_to_disk(temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def copy_file(source: Path, path: Path) -> None:
    """Copy a file's bytes atomically; where the file system can, the copy shares them until one of the two changes."""
    with replacing(path) as temporary, open(source, "rb") as read, open(temporary, "wb") as written:
        try:
            fcntl.ioctl(written.fileno(), _FICLONE, read.fileno())
        except OSError:
            shutil.copyfileobj(read, written, 2**24)


def flush_to_disk(path: Path) -> None:
    """Wait until a file's bytes are on the disk: a rename may reach it before them."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_temporaries(folder: Path) -> None:
    """Remove what killed writers left anywhere below `folder`; nothing may be writing there."""
    for parent, _, names in os.walk(folder):
        for name in filter(is_temporary, names):
            Path(parent, name).unlink(missing_ok=True)


def write_json(path: Path, value: Any, private: bool = False) -> None:
    """Write JSON atomically and durably; if it is private, for the user's eyes only. See `finite` for NaN."""
    text = json.dumps(finite(value), indent=2, ensure_ascii=False, sort_keys=True, allow_nan=False)
    write_text(path, text + "\n", private)


def finite(value: Any) -> Any:
    """A value with null in place of NaN and infinities, which JSON has not: an undefined score stays one that can be
    read by any program."""
    if isinstance(value, Mapping):
        return {key: finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_text(path: Path, text: str, private: bool = False) -> None:
    """Write a text file atomically and durably; if it is private, for the user's eyes only."""
    with replacing(path) as temporary:
        if private:
            temporary.touch(0o600)
        temporary.write_text(text, encoding="utf-8")


def read_json(path: Path) -> Any:
    """The value in a JSON file, None when there is no such file. Raises UserError for a damaged one."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); delete {path.parent} and run its stage again") from error
