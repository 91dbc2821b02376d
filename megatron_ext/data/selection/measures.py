"""What counting finds out about documents."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from megatron_ext.data.selection.contamination import Hits


@dataclass
class Measured:
    """What is known of documents, by their place in the order of selection."""

    num_tokens: np.ndarray  # int64 [n]; -1: not counted
    hits: Hits = field(default_factory=Hits.none)

    def counted_tokens(self, places: np.ndarray, removes_hits: bool) -> np.ndarray:
        """The tokens of these documents, 0 for one that is dropped or was not reached; int64."""
        num_tokens = np.maximum(self.num_tokens[places], 0)
        return np.where(np.isin(places, self.hits.documents), 0, num_tokens) if removes_hits else num_tokens

    def tokens_of(self, documents: np.ndarray) -> np.ndarray:
        """The tokens of these documents, -1 where they are not known, also beyond the end; int64."""
        known = np.append(self.num_tokens, -1)
        return known[np.minimum(documents, len(known) - 1)]
