"""What is told of the ids of tokenized texts: the largest, and the special tokens that texts hold literally."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from megatron_ext.data.encoders import Encoded
from megatron_ext.errors import UserError

_MAX_RANGES = 4  # of special ids; more are looked up in a table, which takes longer


class IdFacts:
    """Looks through the ids of texts on their way into a dataset."""

    def __init__(self, special_token_ids: Mapping[str, int], dtype: np.dtype, vocab_size: int) -> None:
        self._names = {token_id: name for name, token_id in special_token_ids.items()}
        self._ranges = _ranges_of(sorted(self._names))
        self._is_special = np.zeros(max(vocab_size, 1 + max(self._names, default=-1)), dtype=bool)
        self._is_special[list(self._names)] = True
        self._dtype = dtype
        self._limit = min(vocab_size, np.iinfo(dtype).max + 1)
        self._largest = -1
        self._special: dict[int, int] = {}

    def cast(self, encoded: Encoded, frame_ids: Sequence[int] = ()) -> np.ndarray:
        """The ids of some texts in the type of the dataset, counted in.

        Args:
            frame_ids: ids that every text with ids got besides its own.

        Raises UserError for an id beyond the vocabulary, which that type may not hold.
        """
        ids = encoded.ids
        if not len(ids):
            return ids.astype(self._dtype)
        smallest = int(ids.min()) if ids.dtype.kind == "i" else 0
        largest = int(ids.max())
        if largest >= self._limit or smallest < 0:
            raise UserError(f"the tokenizer gives the id {largest if smallest >= 0 else smallest:,}, but its "
                            f"vocabulary ends at {self._limit - 1:,}: its files do not fit together")
        self._largest = max(self._largest, largest)
        cast = ids.astype(self._dtype, copy=False)
        self._count(self._special_in(cast))
        num_framed = int(np.count_nonzero(encoded.lengths))
        self._count({token_id: -num_framed for token_id in frame_ids if token_id in self._names})
        return cast

    def _count(self, found: Mapping[int, int]) -> None:
        for token_id, count in found.items():
            self._special[token_id] = self._special.get(token_id, 0) + count

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
        if len(self._ranges) > _MAX_RANGES:
            found = [ids[self._is_special[ids]]]
        else:
            found = [ids[_is_within(ids, first, last)] for first, last in self._ranges]
        values, counts = np.unique(np.concatenate(found or [ids[:0]]), return_counts=True)
        return dict(zip(values.tolist(), counts.tolist(), strict=True))


def _is_within(ids: np.ndarray, first: int, last: int) -> np.ndarray:
    """One look at each id where one is enough."""
    if first == last:
        return ids == first
    return ids <= last if first == 0 else (ids >= first) & (ids <= last)


def _ranges_of(ids: Sequence[int]) -> list[tuple[int, int]]:
    """(first, last) of each run of neighbouring ids, ascending."""
    ranges: list[tuple[int, int]] = []
    for token_id in ids:
        if ranges and token_id == ranges[-1][1] + 1:
            ranges[-1] = (ranges[-1][0], token_id)
        else:
            ranges.append((token_id, token_id))
    return ranges
