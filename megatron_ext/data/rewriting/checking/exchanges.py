"""Numbers of a source that came to stand where others stood: in other pairs, with other units or nouns."""

from __future__ import annotations

import re
from decimal import Decimal
from itertools import combinations, pairwise

from megatron_ext.data.rewriting.checking.quantities import MONTH, Quantities, Quantity

_OF_A_MONTH = re.compile(r"\s*(?:[^\W\d_]{1,3}|/)?\s*")
"""Between a day and its month: at most a short word."""


def has_mismatch(source: Quantities, other: Quantities) -> bool:
    """Whether numbers of the source came to stand where others stood: pairs in another order or of others, values whose
    unit is another, values that exchanged what they count.
    """
    return (any(_is_new_pair(pair, source, other) for pair in other.pairs) or _have_exchanged(source, other)
            or any(_has_other_unit(one, source) for one in other.exact) or _count_each_others(source, other)
            or _has_other_month(source, other))


def _is_new_pair(pair: tuple[Quantity, Quantity], source: Quantities, other: Quantities) -> bool:
    """Both stand in the source, in pairs that the other text has not, or in the other order."""
    first, second = (one.value for one in pair)
    known, kept = ({(one.value, two.value) for one, two in text.pairs} for text in (source, other))
    if (first, second) in known or first == second:
        return False
    if (second, first) in known:
        return True
    values = {one.value for one in source.exact}
    broken = {value for one in known - kept for value in one}
    return {first, second} <= values and bool({first, second} & broken)


def _has_other_unit(one: Quantity, source: Quantities) -> bool:
    same_value = [found for found in source.exact if found.value == one.value]
    return bool(one.dimension and same_value) and not one.is_article and all(
        found.dimension and not one.equals(found) for found in same_value) and not any(
        one.equals(found) for found in source.exact)


def _has_other_month(source: Quantities, other: Quantities) -> bool:
    """A day of the source's dates that stands before other months alone."""
    there, here = (_days(text) for text in (source, other))
    return any(months.isdisjoint(there[day]) for day, months in here.items() if day in there)


def _days(text: Quantities) -> dict[Decimal, set[Decimal]]:
    """Day -> months that it stands before: 30 de junho, 30/06."""
    ordered = sorted(text.exact, key=lambda one: one.place)
    days: dict[Decimal, set[Decimal]] = {}
    for first, second in pairwise(ordered):
        if second.dimension == MONTH and _OF_A_MONTH.fullmatch(text.reworded[first.end:second.place]):
            days.setdefault(first.value, set()).add(second.value)
    return days


def _count_each_others(source: Quantities, other: Quantities) -> bool:
    """Two values each count what the other one counted."""
    there, here = ({one.value: one.noun for one in text.exact if one.noun and not one.dimension}
                   for text in (source, other))
    return any(there[one] != there[two] and here[one] == there[two] and here[two] == there[one]
               for one, two in combinations([value for value in here if value in there], 2))


def _have_exchanged(source: Quantities, other: Quantities) -> bool:
    """Two values each follow the word that the other one followed: multa de 2%, juros de 1%."""
    there = {one.size: one.before for one in source.exact if one.before}
    here = {one.size: one.before for one in other.exact if one.before}
    shared = [size for size in here if size in there]
    return any(there[one] != there[two] and here[one] == there[two] and here[two] == there[one]
               for one, two in combinations(shared, 2))
