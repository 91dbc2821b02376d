"""What a trunk has read, so that a branch goes on where it stopped: nothing is shown again before its pass ends."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Seeds = tuple[tuple[int, int], ...]
"""(sample, seed) of a source: from which of its samples on, counted over all passes, which seed decides the order."""


@dataclass(frozen=True)
class SourceRead:
    """How far a source was read, and in what order."""

    content_hash: str
    """Of the tokenized artifact: a source is known by its bytes, whatever a branch calls it."""
    order_name: str
    """The name that its order is drawn with: the first run's."""
    seeds: Seeds
    num_samples: int
    """Samples that lie behind, those that were passed over too."""
    exposure: Mapping[str, float] = field(default_factory=dict)
    """Its entry in the ledger of exposure."""

    def seeds_after(self, seed: int) -> Seeds:
        """The same for a run that goes on with this seed: what is left of the pass under way is dealt out anew, unless
        the seed stays."""
        kept = tuple((first, one) for first, one in self.seeds if first < self.num_samples)
        if kept and kept[-1][1] == seed:
            return kept
        return (*kept, (self.num_samples if kept else 0, seed))

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> SourceRead:
        """What `vars` of one became in a file."""
        return cls(**{**values, "seeds": tuple(map(tuple, values["seeds"]))})


@dataclass(frozen=True)
class Past:
    """What lies behind a branch."""

    num_samples: int
    """Samples of the trunk, all sources."""
    sources: Mapping[str, SourceRead]
    """Sources that the branch goes on with, by its own names."""
    left: Mapping[str, SourceRead]
    """Sources that the trunk has read and the branch does not."""
    blend_from: int | None = None
    """Sample from which the trunk's amounts count, where the branch's are the same; None: they are the branch's own."""
