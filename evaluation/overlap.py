"""Which held-out documents training text holds, too, as tools.find_overlap found them; and what that means."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_ext.artifacts import Artifact
from megatron_ext.data.selection.overlap import DOCUMENTS, OVERLAP


@dataclass(frozen=True)
class Overlap:
    """Held-out documents that training text holds in part."""

    texts: dict[str, dict[str, Any]]
    """Text -> the counts of overlap.json."""
    documents: set[tuple[str, str]]
    """(text, id)"""
    shared_words: str
    """How many words in a row count, in words."""

    def caveats(self, what: str, noun: str = "held-out documents") -> Iterator[str]:
        """One sentence for each text that overlaps.

        Args:
            what: has become of the documents: `keep` or `remove`.
            noun: what the documents are called.
        """
        for name, text in self.texts.items():
            if text.get("too_short"):
                yield (f"{text['too_short']:,} of the {text['documents']:,} {noun} of “{name}” are too short to be "
                       "looked for in training text but as near duplicates.")
            if not text["overlapping"]:
                continue
            sources = "; ".join(f"{source}: {one['shares_words']:,} share {self.shared_words}, "
                                f"{one['near_duplicates']:,} are near duplicates"
                                for source, one in text["training"].items() if any(one.values()))
            kept = "they are left out" if what == "remove" else "they are counted all the same"
            yield (f"Of the {text['documents']:,} {noun} of “{name}” training text holds "
                   f"{text['overlapping']:,} in part ({sources}); {kept}.")


def load_overlap(folder: Path) -> Overlap:
    """Read what was found. Raises UserError when it is not there, or was changed."""
    artifact = Artifact.open(folder, kind="overlap")
    with open(artifact.path / DOCUMENTS, encoding="utf-8") as file:
        found = {(row["source"], row["id"]) for row in map(json.loads, file)}
    short = artifact.settings.get("short_ngram")
    words = f"{artifact.settings['ngram']} words in a row" + (f" (shorter ones {short})" if short else "")
    return Overlap(json.loads((artifact.path / OVERLAP).read_text(encoding="utf-8")), found, words)
