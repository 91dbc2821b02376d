"""Bits a byte of held-out text: of each condition on each text, and the differences, neutral text first."""

from __future__ import annotations

from typing import Any

from evaluation.measures import BITS_PER_BYTE, Measure
from evaluation.report.measured import charted
from evaluation.report.record import StudyRecord, joined, label


def held_out_section(record: StudyRecord) -> dict[str, Any] | None:
    """Everything that comes from held_out.json, ready to be shown; None where no text was held out."""
    comparison = record.held_out_comparison()
    if comparison is None:
        return None
    texts = [_text(text, comparison) for text in comparison["texts"]]
    texts.sort(key=lambda text: (not text["is_primary"], not text["is_neutral"]))
    return {"measure": BITS_PER_BYTE.name, "unit": BITS_PER_BYTE.unit, "texts": texts,
            "num_resamples": comparison["num_resamples"], "caveats": comparison["caveats"],
            "headline": next((_headline(text, comparison) for text in comparison["texts"]
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


def _headline(text: dict[str, Any], comparison: dict[str, Any]) -> dict[str, Any]:
    """The answer in one line, from the text that the study named as its primary outcome."""
    primary = [one for one in text["differences"] if one["family"] == "baseline"]
    claimed = [one for one in primary if one["is_claimed"]]
    baseline, where = label(comparison["baseline"]), f"“{label(text['name'])}” text"
    if not claimed:
        return {"is_claimed": False, "text": f"On {where} no condition can be told apart from “{baseline}”: "
                                             f"{text['num_clusters']:,} documents."}
    told = joined([_in_words(one, BITS_PER_BYTE) for one in claimed]) + f" than “{baseline}”"
    if len(claimed) < len(primary):
        others = ["“" + label(one["condition"]) + "”" for one in primary if one not in claimed]
        told += f"; for {joined(others)} no difference can be claimed"
    return {"is_claimed": True, "text": f"On {where} {told}."}


def _in_words(one: dict[str, Any], measure: Measure) -> str:
    value = one["estimate"]["value"]
    how = "better" if measure.is_better(value) else "worse"
    return f"“{label(one['condition'])}” is {measure.amount(value)} {measure.unit} {how}"
