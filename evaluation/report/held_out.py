"""Bits a byte of held-out text: of each condition on each text, and the differences, neutral text first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from evaluation.measures import BITS_PER_BYTE, Measure
from evaluation.report.record import StudyRecord, joined, label, readable
from evaluation.report.scales import nice_scale

FAMILIES = {"baseline": "Against the baseline", "given": "Against the model before training", "others": "Other pairs",
            "interactions": "Interactions"}


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
    conditions = [{"name": name, "label": label(name), **one,
                   "per_seed": one["per_seed"] if one["num_seeds"] > 1 else []}
                  for name, one in text["conditions"].items()]
    differences = [_difference(one) for one in [*text["differences"], *text["interactions"]]]
    told = sorted((one for one in [*text["interactions"], *text["differences"]]
                   if one["family"] in ("baseline", "interactions")), key=lambda one: not one["is_claimed"])
    return {
        "name": text["name"], "label": label(text["name"]), "is_neutral": text["is_neutral"],
        "is_primary": text["name"] == comparison["primary"],
        "trained_on_by": [label(name) for name in text["trained_on_by"]],
        "num_documents": text["num_documents"], "num_clusters": text["num_clusters"],
        "conditions": conditions,
        "scale": _scale([one["estimate"] for one in conditions], [value for one in conditions
                                                                  for value in one["per_seed"]]),
        "families": [{"title": title, "rows": [one for one in differences if one["family"] == family]}
                     for family, title in FAMILIES.items() if any(one["family"] == family for one in differences)],
        "difference_scale": _scale([one["estimate"] for one in differences], [0.0]),
        "verdicts": [readable(one["verdict"], text["conditions"]) for one in told],
    }


def _difference(one: dict[str, Any]) -> dict[str, Any]:
    if "conditions" in one:
        a, b, c, d = map(label, one["conditions"])
        name = f"{one['name']}: ({a} − {b}) − ({c} − {d})"
    else:
        name = f"{label(one['condition'])} − {label(one['reference'])}"
    value, better = one["estimate"]["value"], BITS_PER_BYTE.is_better(one["estimate"]["value"])
    return {"label": name, "family": one["family"], "estimate": one["estimate"], "p_corrected": one["p_corrected"],
            "is_claimed": one["is_claimed"], "counts": one.get("counts", True),
            "direction": "" if not value or "conditions" in one else "better" if better else "worse"}


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


def _scale(estimates: Sequence[dict[str, Any]], more: Sequence[float]) -> Any:
    return nice_scale([*(estimate[key] for estimate in estimates for key in ("value", "low", "high")), *more])
