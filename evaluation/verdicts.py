"""What may be said about a difference, in words that never claim more than the numbers carry."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from evaluation.measures import NPM, Measure

ALPHA = 0.05
MIN_ITEMS = 30
"""Fewer items cannot carry a claim: intervals and t quantiles are rough there."""


def obstacle(estimate: dict[str, Any], p: float | None, *, num_items: int, data: str = "",
             measure: Measure = NPM) -> str | None:
    """Why a difference may not be claimed; None when it may.

    Args:
        estimate: of the difference, see evaluation.statistics.Estimate.
        p: corrected for the family of comparisons.
        data: kind of items; "sample" items carry no claim.
    """
    low, high = estimate["low"], estimate["high"]
    if low is None or p is None:
        return f"the {measure.cluster}s tell too little for an interval"
    if low <= 0 <= high:
        return "the interval holds 0"
    if data == "sample":
        return "sample items carry no claim"
    if num_items < MIN_ITEMS:
        return f"a claim needs at least {MIN_ITEMS} {measure.cluster}s"
    if p > ALPHA:
        return f"{p_text(p)} once corrected for the number of comparisons"
    return None


def conclude(comparison: dict[str, Any], difference_verdict: Callable[..., str], **facts: Any) -> None:
    """Add `is_claimed` and `verdict` to a difference, or an interaction, whose p value was corrected.

    Args:
        difference_verdict: (condition, reference, estimate, p, **facts) -> sentence.
        facts: num_items, data and measure, as `obstacle` takes them.
    """
    found = comparison["estimate"], comparison["p_corrected"]
    comparison["is_claimed"] = obstacle(*found, **facts) is None
    comparison["verdict"] = (
        interaction_verdict(comparison["name"], comparison["conditions"], *found, **facts)
        if "conditions" in comparison
        else difference_verdict(comparison["condition"], comparison["reference"], *found, **facts))


def difference_verdict(condition: str, reference: str, estimate: dict[str, Any], p: float | None, *, num_items: int,
                       num_tasks: int = 1, data: str = "", one_seed: bool, measure: Measure = NPM) -> str:
    """One sentence about condition - reference; arguments as in `obstacle`.

    `one_seed`: a training run was not repeated, so that only these models were compared.
    """
    size = f"n = {count(num_items, measure.cluster)}" + (f" of {num_tasks} tasks" if num_tasks > 1 else "")
    none = f"No difference can be claimed between {condition} and {reference}"
    if not math.isfinite(estimate["value"]):
        return f"{none}: a score is undefined, {size}."
    why = obstacle(estimate, p, num_items=num_items, data=data, measure=measure)
    if why is None:
        better = "better" if measure.is_better(estimate["value"]) else "worse"
        scope = (" This holds for these trained models; with one training run a condition, another seed may give "
                 "another answer.") if one_seed else ""
        return (f"{condition} is {better} than {reference}: {_numbers(estimate, measure)}, {size}, corrected "
                f"{p_text(p)}.{scope}")
    reason = "" if why == "the interval holds 0" else f" ({why})"
    return f"{none}: {_numbers(estimate, measure)}, {size}{reason}{_could_detect(estimate, measure)}."


def only_learnt_its_own(condition: str, reference: str, difference: float, trained_on_by: Sequence[str],
                        measure: Measure) -> bool:
    """Whether the better one of two, alone of them, was trained on the source that the text was held out of."""
    better, worse = (condition, reference) if measure.is_better(difference) else (reference, condition)
    return better in trained_on_by and worse not in trained_on_by


def held_out_verdict(condition: str, reference: str, estimate: dict[str, Any], p: float | None, *, text: str,
                     num_items: int, trained_on_by: Sequence[str], one_seed: bool, measure: Measure) -> str:
    """A sentence or two about condition - reference on a held-out text; arguments as in `obstacle`.

    Args:
        trained_on_by: conditions that were trained on the source that the text was held out of.
    """
    size = f"n = {count(num_items, measure.cluster)} of “{text}”"
    why = obstacle(estimate, p, num_items=num_items, measure=measure)
    if why is not None:
        reason = "" if why == "the interval holds 0" else f" ({why})"
        return (f"On “{text}” no difference can be claimed between {condition} and {reference}: "
                f"{_numbers(estimate, measure)}, {size}{reason}{_could_detect(estimate, measure)}.")
    value = estimate["value"]
    is_better = measure.is_better(value)
    own = only_learnt_its_own(condition, reference, value, trained_on_by, measure)
    fit = f"fits “{text}” {'better' if is_better else 'worse'}" if own else \
        f"is {'better' if is_better else 'worse'} on “{text}”"
    more = "more" if value > 0 else "fewer"
    scope = (f" {condition if is_better else reference} was trained on that source, which by itself makes it no better "
             "model." if own else "")
    scope += (" This covers the choice of documents alone: with one training run a condition, another seed may give "
              "another answer." if one_seed else " This covers other documents and other seeds.")
    return (f"{condition} {fit} than {reference}: {measure.amount(value)} {measure.unit} {more}, which is "
            f"{'better' if is_better else 'worse'}; 95 % interval {measure.signed(estimate['low'])} to "
            f"{measure.signed(estimate['high'])}, {size}, corrected {p_text(p)}.{scope}")


def interaction_verdict(name: str, conditions: list[str], estimate: dict[str, Any], p: float | None, *,
                        num_items: int, data: str = "", measure: Measure = NPM) -> str:
    """One sentence about the difference of differences (a - b) - (c - d)."""
    a, b, c, d = conditions
    what = f"({a} − {b}) − ({c} − {d})"
    if not math.isfinite(estimate["value"]):
        return f"{name}: no interaction can be claimed, {what} is undefined."
    if obstacle(estimate, p, num_items=num_items, data=data, measure=measure) is None:
        larger = "larger" if measure.is_better(estimate["value"]) else "smaller"
        return (f"{name}: the effect of {a} over {b} is {larger} than that of {c} over {d}: {what} = "
                f"{_numbers(estimate, measure)}, {p_text(p)}.")
    return (f"{name}: no interaction can be claimed: {what} = {_numbers(estimate, measure)}"
            f"{_could_detect(estimate, measure)}.")


def _numbers(estimate: dict[str, Any], measure: Measure) -> str:
    value = f"{measure.signed(estimate['value'])} {measure.unit}"
    if not measure.higher_is_better and estimate["value"]:
        value += " (fewer is better)"
    if estimate["low"] is None:
        return f"{value}, no interval"
    return f"{value}, 95 % interval {measure.signed(estimate['low'])} to {measure.signed(estimate['high'])}"


def _could_detect(estimate: dict[str, Any], measure: Measure) -> str:
    points = estimate["minimum_detectable"]
    if points is None:
        return ""
    if measure.high is not None and points >= measure.high:
        return "; this study is too small to detect any difference"
    text = f"{points:.0f}" if measure.decimals == 1 and points >= 10 else measure.amount(points)
    return f"; this study could have detected {text} {measure.unit} or more"


def caveats(*, num_items: int, num_tasks: int, data: str, min_seeds: int, profile: str,
            deviations: list[str], missing: Sequence[str] = (), changes: Sequence[str] = (),
            engines: Sequence[str] = (), mean_of_last: int = 1) -> list[str]:
    """What keeps the numbers from meaning more, most important first.

    Args:
        missing: conditions that were to be compared, or that lack seeds.
        changes: what was changed while some runs were going on, and not in others.
        engines: in what the engines that ran the models differed.
        mean_of_last: checkpoints of which an NPM is the mean.
    """
    found = []
    if missing:
        found.append(f"Missing in this comparison, which is made again when it is there: {', '.join(missing)}.")
    if changes:
        found.append(f"Changed on the way in some runs and not in others: {'; '.join(changes)}.")
    if engines:
        found.append("The models were not evaluated in the same way, and rounding alone changes answers: "
                     f"{'; '.join(engines)}.")
    if mean_of_last > 1:
        found.append(f"NPM is the mean over the last {mean_of_last} checkpoints of each run.")
    if data == "sample":
        found.append("The items are the small sample set that ships with the project, not PoETa V2's own data: the "
                     "scores show that the machinery works and nothing about a model.")
    if num_items < MIN_ITEMS:
        found.append(f"Only {count(num_items, 'item')} were answered; at least {MIN_ITEMS} are needed for any claim, "
                     "and several thousand for differences of one or two NPM.")
    elif num_tasks < 44:
        found.append(f"{count(num_tasks, 'task')} of PoETa V2's 44: the NPM here is not comparable with published "
                     "ones over all tasks.")
    if min_seeds < 2:
        found.append("One training run a condition: the intervals cover the choice of items, not what another seed "
                     "would give. Two or more seeds a condition are needed for a claim about data.")
    if profile != "official":
        found.append(f"Profile {profile!r}: not comparable with scores of the official protocol.")
    found += [f"Not the official protocol: {deviation}." for deviation in deviations]
    return found


def signed(value: float) -> str:
    """NPM with sign, see Measure.signed."""
    return NPM.signed(value)


def p_text(p: float | None) -> str:
    """A p value as it is printed."""
    if p is None:
        return "p unknown"
    return f"p = {p:.3f}" if p >= 0.001 else "p < 0.001"


def count(number: int, noun: str) -> str:
    """A number with its noun."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
