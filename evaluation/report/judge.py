"""What a judge says of the rewrites: the unfaithful share of each style, and how often the judge itself is wrong."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from evaluation.report.record import StudyRecord, joined, label, model_label
from megatron_ext.artifacts import Artifact

NOTABLE_SHARE = 0.05
"""A style is told of when more of its rewrites than this, and than the judge says of good ones, are unfaithful."""
_NOTABLE_LOSS = 0.2
"""And when so many of its answers, or more, could not be used."""


def judged_section(record: StudyRecord) -> dict[str, Any] | None:
    """Shares of each rewriting and style, and false rates of the judge; None where nothing was judged."""
    judged = record.named("judged")
    if unjudged := [label(name) for name in record.values.get("judged", {}) if name not in judged]:
        record.without(f"The judge of {joined(unjudged)} has not run.")
    if not judged:
        return None
    subsets = [_subset(name, artifact) for name, artifact in judged.items()]
    return {"judge": _judge_name(record), "subsets": subsets,
            "caveats": [caveat for subset in subsets for caveat in _caveats(subset)]}


def _subset(name: str, artifact: Artifact) -> dict[str, Any]:
    summary = json.loads((artifact.path / "summary.json").read_text(encoding="utf-8"))
    return {
        "name": label(name), "judges_itself": summary["judges_itself"], "is_informative": summary["is_informative"],
        "styles": [{**one, "reasons": _reasons(one)} for one in summary["styles"]],
        "labelled": {name: {**one, "reasons": _reasons(one)} for name, one in summary["labelled"].items()},
    }


def _reasons(one: dict[str, Any]) -> list[dict[str, Any]]:
    """Why the judge said nothing, most frequent first."""
    return [{"reason": label(reason), "count": count}
            for reason, count in sorted(one["reasons"].items(), key=lambda item: (-item[1], item[0]))]


def _judge_name(record: StudyRecord) -> str | None:
    """The judge as the study names it."""
    judge = record.values.get("settings", {}).get("judge") or {}
    return judge.get("settings", {}).get("openai", {}).get("model") or model_label(judge.get("model"))


def _caveats(subset: dict[str, Any]) -> Iterator[str]:
    name = subset["name"]
    good, bad = (subset["labelled"][name]["wrong"] for name in ("good", "bad"))
    if not subset["is_informative"]:
        yield (f"The judge of {name} cannot tell good rewrites from bad ones: of labelled good ones it says unfaithful "
               f"of {in_words(good)}, of bad ones faithful of {in_words(bad)}. Its shares say nothing.")
        return
    told = [f"“{one['style']}” {in_words(one['unfaithful'])}" for one in subset["styles"] if _is_notable(one, good)]
    if told:
        yield (f"Accepted rewrites of {name} that a judge calls unfaithful: {joined(told)}. Of labelled good rewrites "
               f"it calls {in_words(good)} unfaithful, of bad ones {in_words(bad)} faithful.")
    lost = [f"“{one['style']}” {one['num_asked'] - one['num_judged']:,} of {one['num_asked']:,}"
            for one in subset["styles"] if one["num_asked"] - one["num_judged"] >= _NOTABLE_LOSS * one["num_asked"] > 0]
    if lost:
        yield f"Of many rewrites of {name} the judge said nothing that can be used: {joined(lost)}."
    if subset["judges_itself"]:
        yield f"The judge of {name} is the model that wrote the rewrites: models are mild with what they wrote."


def _is_notable(one: dict[str, Any], good: dict[str, Any]) -> bool:
    low = one["unfaithful"]["low"]
    return low is not None and low > max(NOTABLE_SHARE, good["share"] or 0.0)


def in_words(share: dict[str, Any]) -> str:
    """`6.1 % (95 % interval 3.5 to 10.3, n = 198)`."""
    if share["share"] is None:
        return "none (n = 0)"
    return (f"{100 * share['share']:.1f} % (95 % interval {100 * share['low']:.1f} to {100 * share['high']:.1f}, "
            f"n = {share['of']:,})")
