"""The numbers that a selection keeps of each document while it decides; the texts lie in runs (`runs`).

The order of selection is that of XXH3-128(id, seed): it depends on the ids and the seed alone, not on shards, their
order or the machine. A document takes 53 bytes here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np


@dataclass(frozen=True)
class Rows:
    """A table of documents."""

    keys: np.ndarray  # uint64 [n, 2]: hash of seed and id
    text_hashes: np.ndarray  # uint64 [n, 2]
    num_bytes: np.ndarray  # int32 [n]: of the text
    codes: np.ndarray  # uint8 [n]: PASSED or the code of a reason
    run: np.ndarray  # int32 [n]: number of the run that holds it
    row: np.ndarray  # int32 [n]: its place in the run
    signatures: np.ndarray  # uint64 [n, num_bands]: MinHash bands, where near duplicates are looked for
    chunk: np.ndarray  # int32 [n]: number of the chunk of the corpus that it comes from
    source: np.ndarray  # int32 [n]: its place there, where indexes are kept

    def __len__(self) -> int:
        return len(self.row)

    def take(self, places: np.ndarray) -> Rows:
        """The documents at these places."""
        return Rows(*(getattr(self, field.name)[places] for field in fields(self)))

    def with_run_offset(self, offset: int) -> Rows:
        """The same documents where `offset` runs come before theirs."""
        return replace(self, run=self.run + np.int32(offset))

    @staticmethod
    def of(arrays: Mapping[str, np.ndarray]) -> Rows:
        """From arrays by the names of the fields."""
        return Rows(*(arrays[field.name] for field in fields(Rows)))

    @staticmethod
    def none(num_bands: int = 0) -> Rows:
        """No documents."""
        pairs = np.empty((0, 2), np.uint64)
        numbers = np.empty(0, np.int32)
        return Rows(pairs, pairs, numbers, np.empty(0, np.uint8), numbers, numbers, np.empty((0, num_bands), np.uint64),
                    numbers, numbers)

    @staticmethod
    def concatenate(parts: Sequence[Rows]) -> Rows:
        """All documents of several tables, in order."""
        return Rows(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(Rows)))


def selection_order(rows: Rows) -> np.ndarray:
    """The places of all documents by hash of id; those of one id by hash of text; int64 `[n]`."""
    return np.lexsort((rows.text_hashes[:, 1], rows.text_hashes[:, 0], rows.keys[:, 1], rows.keys[:, 0]))


def first_of_equal(hashes: np.ndarray) -> np.ndarray:
    """True for each of the hashes, uint64 `[n, 2]`, that no earlier one equals, bool `[n]`."""
    by_hash = np.lexsort((hashes[:, 1], hashes[:, 0]))  # stable: equal ones stay in order
    is_first = np.ones(len(hashes), dtype=bool)
    is_first[by_hash[1:]] = np.any(hashes[by_hash[1:]] != hashes[by_hash[:-1]], axis=1)
    return is_first


def with_repeated_keys(keys: np.ndarray) -> np.ndarray:
    """The places whose hash the one before equals, in sorted hashes, uint64 `[n, 2]`; int64."""
    return np.flatnonzero(np.all(keys[1:] == keys[:-1], axis=1)) + 1
