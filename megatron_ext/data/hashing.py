"""XXH3-128 of Arrow strings, without a Python string for each of them."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pyarrow as pa
import xxhash


def hash_strings(strings: pa.StringArray, seed: int = 0) -> np.ndarray:
    """XXH3-128 of each string's UTF-8 bytes (a null counts as empty), uint64 `[n, 2]`: high and low half."""
    return np.frombuffer(b"".join(_digests(strings, seed)), dtype=">u8").astype(np.uint64).reshape(-1, 2)


def content_ids(texts: pa.StringArray) -> pa.Array:
    """An id for each text: XXH3-128 of its UTF-8 bytes, 32 hexadecimal digits; equal texts have equal ids."""
    return pa.array([digest.hex() for digest in _digests(texts, 0)], pa.string())


def _digests(strings: pa.StringArray, seed: int) -> list[bytes]:
    if not len(strings):
        return []
    _, offsets_buffer, bytes_buffer = strings.buffers()
    offsets = np.frombuffer(offsets_buffer, dtype=np.int32)[strings.offset:strings.offset + len(strings) + 1].tolist()
    content = memoryview(bytes_buffer or b"")
    return [xxhash.xxh3_128_digest(content[start:end], seed=seed) for start, end in pairwise(offsets)]
