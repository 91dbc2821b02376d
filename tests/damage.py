"""What can happen to a file."""

import os
import random
from collections.abc import Callable
from pathlib import Path


def flip_a_bit(path: Path, chance: random.Random) -> None:
    """Flip one bit; size and time of modification stay."""
    stat, data = path.stat(), bytearray(path.read_bytes())
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    path.write_bytes(data)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def truncate(path: Path, chance: random.Random) -> None:
    """Cut a file."""
    os.truncate(path, chance.randrange(path.stat().st_size))


def delete(path: Path, chance: random.Random) -> None:
    """Delete a file."""
    path.unlink()


HARMS: tuple[Callable[[Path, random.Random], None], ...] = (flip_a_bit, truncate, delete)
