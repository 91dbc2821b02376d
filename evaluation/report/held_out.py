"""Bits a byte of held-out text: of each condition on each text, and the differences, neutral text first."""

from __future__ import annotations

from typing import Any

from evaluation.measures import BITS_PER_BYTE
from evaluation.report.measured import charted, headline
from evaluation.report.record import StudyRecord, label


def held_out_section(record: StudyRecord) -> dict[str, Any] | None:
    """Everything that comes from held_out.json, ready to be shown; None where no text was held out."""
    comparison = record.held_out_comparison()
    if comparison is None:
        return None
    texts = [_text(text, comparison) for text in comparison["texts"]]
    texts.sort(key=lambda text: (not text["is_primary"], not text["is_neutral"]))
    return {"measure": BITS_PER_BYTE.name, "unit": BITS_PER_BYTE.unit, "texts": texts,
            "num_resamples": comparison["num_resamples"], "caveats": comparison["caveats"],
            "headline": next((_headline(text, comparison["baseline"]) for text in comparison["texts"]
                              if text["name"] == comparison["primary"]), None),
            "verdicts": [verdict for text in texts for verdict in text["verdicts"]]}


def _text(text: dict[str, Any], comparison: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": text["name"], "label": label(text["name"]), "is_neutral": text["is_neutral"],
        "is_primary": text["name"] == comparison["primary"],
        "trained_on_by": [label(name) for name in text["trained_on_by"]],
        "num_documents": text["num_documents"], "num_clusters": text["num_clusters"],
        **charted(text, BITS_PER_BYTE),
    }


def _headline(text: dict[str, Any], baseline: str) -> dict[str, Any]:
    return headline(text, BITS_PER_BYTE, baseline, f"On “{label(text['name'])}” text", text["num_clusters"])
