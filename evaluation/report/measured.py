"""Charts of any declared measure: values of the conditions, differences and interactions, in one form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from evaluation.measures import Measure
from evaluation.report.record import joined, label, readable
from evaluation.report.scales import Scale, nice_scale
from evaluation.verdicts import count

FAMILIES = {"baseline": "Against the baseline", "given": "Against the model before training", "others": "Other pairs",
            "interactions": "Interactions"}


def charted(part: Mapping[str, Any], measure: Measure) -> dict[str, Any]:
    """What is drawn and told of the "conditions", "differences" and "interactions" of a part of a comparison."""
    conditions = [{"name": name, "label": label(name), **one,
                   "per_seed": one["per_seed"] if one["num_seeds"] > 1 else []}
                  for name, one in part["conditions"].items()]
    comparisons = [*part["differences"], *part["interactions"]]
    rows = [_difference(one, measure) for one in comparisons]
    told = sorted((one for one in [*part["interactions"], *part["differences"]]
                   if one["family"] in ("baseline", "interactions")), key=lambda one: not one["is_claimed"])
    return {
        "measure": measure.name, "unit": measure.unit, "conditions": conditions,
        "scale": _scale([one["estimate"] for one in conditions], [value for one in conditions
                                                                  for value in one["per_seed"]]),
        "families": [{"title": title, "rows": [one for one in rows if one["family"] == family]}
                     for family, title in FAMILIES.items() if any(one["family"] == family for one in rows)],
        "difference_scale": _scale([one["estimate"] for one in rows], [0.0]),
        "verdicts": [readable(one["verdict"], part["conditions"]) for one in told],
    }


def headline(part: Mapping[str, Any], measure: Measure, baseline: str, where: str, number: int) -> dict[str, Any]:
    """The answer in one line, from what the study named as its primary outcome.

    Args:
        where: what was measured, as a sentence begins with it.
        number: of clusters.
    """
    primary = [one for one in part["differences"] if one["family"] == "baseline"]
    claimed = [one for one in primary if one["is_claimed"]]
    if not claimed:
        return {"is_claimed": False, "text": f"{where} no condition can be told apart from “{label(baseline)}”: "
                                             f"{count(number, measure.cluster)}."}
    told = joined([_in_words(one, measure) for one in claimed]) + f" than “{label(baseline)}”"
    if len(claimed) < len(primary):
        others = ["“" + label(one["condition"]) + "”" for one in primary if one not in claimed]
        told += f"; for {joined(others)} no difference can be claimed"
    return {"is_claimed": True, "text": f"{where} {told}."}


def _in_words(one: Mapping[str, Any], measure: Measure) -> str:
    value = one["estimate"]["value"]
    how = "better" if measure.is_better(value) else "worse"
    return f"“{label(one['condition'])}” is {measure.amount(value)} {measure.unit} {how}"


def _difference(one: Mapping[str, Any], measure: Measure) -> dict[str, Any]:
    if "conditions" in one:
        a, b, c, d = map(label, one["conditions"])
        name = f"{one['name']}: ({a} − {b}) − ({c} − {d})"
    else:
        name = f"{label(one['condition'])} − {label(one['reference'])}"
    value, better = one["estimate"]["value"], measure.is_better(one["estimate"]["value"])
    return {"label": name, "family": one["family"], "estimate": one["estimate"], "p_corrected": one["p_corrected"],
            "is_claimed": one["is_claimed"], "counts": one.get("counts", True),
            "direction": "" if not value or "conditions" in one else "better" if better else "worse"}


def _scale(estimates: Sequence[dict[str, Any]], more: Sequence[float]) -> Scale:
    return nice_scale([*(estimate[key] for estimate in estimates for key in ("value", "low", "high")), *more])
