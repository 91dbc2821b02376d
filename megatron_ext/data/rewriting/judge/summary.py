"""What the judge said: unfaithful shares by style, its own false rates, and whether these leave anything to say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from scipy.stats import binomtest

from megatron_ext.data.rewriting.judge.answers import REQUEST_FAILED, Judgement
from megatron_ext.data.rewriting.judge.form import FINDINGS
from megatron_ext.data.rewriting.judge.pairs import Pair, Sample

SUMMARY_FILE = "summary.json"
LEVEL = 0.95
_DECIMALS = 4  # far above the last bit, which is the processor's

Judged = Mapping[Pair, Judgement]


def share_of(count: int, total: int) -> dict[str, Any]:
    """`count` of `total` as `share` (0 to 1) with Wilson's 95 % interval, `low` to `high`; None of nothing."""
    if not total:
        return {"count": 0, "of": 0, "share": None, "low": None, "high": None}
    interval = binomtest(count, total).proportion_ci(LEVEL, method="wilson")
    values = {"share": count / total, "low": interval.low, "high": interval.high}
    return {"count": count, "of": total, **{name: round(float(one), _DECIMALS) + 0.0 for name, one in values.items()}}


def summarize(samples: Mapping[str, Sample], labelled: Sequence[Pair], judged: Judged) -> dict[str, Any]:
    """The numbers of summary.json.

    `styles`, each: `num_accepted` chunks, of which `num_asked` were asked for; `unfaithful` of those that the judge
    said something of, and chunks with `unsupported`, `missing` or `contradicted` statements. `labelled`: of `good` and
    `bad` pairs how often the judge is `wrong`, and by kind. Each tells `num_failed` requests and `num_unparsable`
    answers with their `reasons`. `is_informative`: see there. Intervals take each pair for a piece of evidence of its
    own.
    """
    told = {label: _labelled([pair for pair in labelled if pair.label == label], judged) for label in ("good", "bad")}
    return {"styles": [{"style": style, **_style(sample, judged)} for style, sample in samples.items()],
            "labelled": told, "is_informative": is_informative(told)}


def is_informative(labelled: Mapping[str, Any]) -> bool:
    """Whether the judge says unfaithful of bad pairs clearly more often than of good ones: intervals do not meet."""
    good, bad = labelled["good"]["wrong"], labelled["bad"]["wrong"]
    return None not in (good["high"], bad["high"]) and good["high"] < 1 - bad["high"]


def lines(summary: Mapping[str, Any]) -> Iterator[str]:
    """The summary in words: a line a style, then the judge's own false rates."""
    for one in summary["styles"]:
        found = ", ".join(f"{name} {one[name]:,}" for name in FINDINGS)
        yield (f"{one['style']}: unfaithful {in_words(one['unfaithful'])} ({found}); {one['num_accepted']:,} accepted"
               f"{_without(one)}")
    good, bad = summary["labelled"]["good"], summary["labelled"]["bad"]
    yield f"the judge itself: of labelled good pairs says unfaithful of {in_words(good['wrong'])}{_without(good)}"
    yield f"the judge itself: of labelled bad pairs says faithful of {in_words(bad['wrong'])}{_without(bad)}"
    yield from (f"  {kind}: {one['count']} of {one['of']}" for kind, one in bad["kinds"].items())
    if not summary["is_informative"]:
        yield "note: this judge cannot tell good rewrites from bad ones: its shares say nothing"


def in_words(share: Mapping[str, Any]) -> str:
    """`12 of 198 = 6.1 % (3.5 to 10.3)`."""
    if share["share"] is None:
        return "0 of 0"
    low, high = 100 * share["low"], 100 * share["high"]
    return f"{share['count']:,} of {share['of']:,} = {100 * share['share']:.1f} % ({low:.1f} to {high:.1f})"


def _without(one: Mapping[str, Any]) -> str:
    """What was asked and got no judgement."""
    parts = [f"{one[name]:,} {what}" for name, what in (("num_unparsable", "unparsable"), ("num_failed", "failed"))
             if one[name]]
    return f"; no judgement: {', '.join(parts)}" if parts else ""


def _counts(pairs: Sequence[Pair], judged: Judged) -> dict[str, Any]:
    """What was asked, and why some of it was not judged."""
    reasons = Counter(reason for pair in pairs for reason in judged[pair].reasons)
    num_judged, num_failed = sum(not judged[pair].reasons for pair in pairs), reasons[REQUEST_FAILED]
    return {"num_asked": len(pairs), "num_judged": num_judged, "num_failed": num_failed,
            "num_unparsable": len(pairs) - num_judged - num_failed, "reasons": dict(sorted(reasons.items()))}


def _style(sample: Sample, judged: Judged) -> dict[str, Any]:
    said = [judged[pair] for pair in sample.pairs if not judged[pair].reasons]
    return {
        "num_accepted": sample.num_accepted, **_counts(sample.pairs, judged),
        "unfaithful": share_of(sum(not one.is_faithful for one in said), len(said)),
        **{name: sum(bool(one.findings[name]) for one in said) for name in FINDINGS},
    }


def _labelled(pairs: Sequence[Pair], judged: Judged) -> dict[str, Any]:
    said = [pair for pair in pairs if not judged[pair].reasons]
    wrong = [pair for pair in said if judged[pair].is_faithful != (pair.label == "good")]
    asked, missed = Counter(pair.kind for pair in said), Counter(pair.kind for pair in wrong)
    return {**_counts(pairs, judged), "wrong": share_of(len(wrong), len(said)),
            "kinds": {kind: share_of(missed[kind], asked[kind]) for kind in sorted(asked)}}
