"""What is told of the ids of tokenized texts: the largest, and the special tokens that texts hold literally."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from megatron_ext.data.encoders import Encoded
from megatron_ext.errors import UserError

_MAX_RANGES = 4  # of special ids; more are looked up in a table, which takes longer


class IdFacts:
    """Looks through ids before they are cast to the type of a dataset."""

    def __init__(self, special_token_ids: Mapping[str, int], dtype: np.dtype, vocab_size: int) -> None:
        self._names = {token_id: name for name, token_id in special_token_ids.items()}
        self._ranges = _ranges_of(sorted(self._names))
        self._table = np.zeros(max(vocab_size, *self._names, 0) + 1, dtype=bool) if self._names else None
        if self._table is not None:
            self._table[list(self._names)] = True
        self._limit = min(vocab_size, np.iinfo(dtype).max + 1)
        self._largest = -1
        self._special: dict[int, int] = {}

    def add(self, encoded: Encoded, frame_ids: Sequence[int] = ()) -> None:
        """Count in some texts.

        Args:
            frame_ids: ids that every text with ids got besides its own.

        Raises UserError for an id beyond the vocabulary, which the type of the dataset may not hold.
        """
        ids = encoded.ids
        if not len(ids):
            return
        largest = int(ids.max())
        if largest >= self._limit or (ids.dtype.kind == "i" and int(ids.min()) < 0):
            raise UserError(f"the tokenizer gives the id {largest:,}, but its vocabulary ends at {self._limit - 1:,}: "
                            "its files do not fit together")
        self._largest = max(self._largest, largest)
        for token_id, count in self._special_in(ids).items():
            self._special[token_id] = self._special.get(token_id, 0) + count
        framed = int(np.count_nonzero(encoded.lengths))
        for token_id in frame_ids:
            if token_id in self._names:
                self._special[token_id] = self._special.get(token_id, 0) - framed

    def as_json(self) -> dict[str, Any]:
        """`largest_token_id` (-1: none) and `special_tokens_in_texts`, a number for each that occurs."""
        return {"largest_token_id": self._largest,
                "special_tokens_in_texts": {self._names[token_id]: count
                                            for token_id, count in sorted(self._special.items()) if count}}

    @staticmethod
    def joined(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The same of several parts together."""
        special: dict[str, int] = {}
        for part in parts:
            for name, count in part["special_tokens_in_texts"].items():
                special[name] = special.get(name, 0) + count
        return {"largest_token_id": max((part["largest_token_id"] for part in parts), default=-1),
                "special_tokens_in_texts": special}

    def _special_in(self, ids: np.ndarray) -> dict[int, int]:
        if self._table is None:
            return {}
        if len(self._ranges) > _MAX_RANGES:
            found = ids[self._table[ids]]
        else:
            found = np.concatenate([ids[(ids >= first) & (ids <= last)] for first, last in self._ranges])
        values, counts = np.unique(found, return_counts=True)
        return dict(zip(values.tolist(), counts.tolist(), strict=True))


def _ranges_of(ids: Sequence[int]) -> list[tuple[int, int]]:
    """(first, last) of each run of neighbouring ids, ascending."""
    ranges: list[tuple[int, int]] = []
    for token_id in ids:
        if ranges and token_id == ranges[-1][1] + 1:
            ranges[-1] = (ranges[-1][0], token_id)
        else:
            ranges.append((token_id, token_id))
    return ranges
