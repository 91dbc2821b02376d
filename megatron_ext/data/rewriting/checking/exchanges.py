"""Numbers of a source that came to stand where others stood: in other pairs, with other units or nouns."""

from __future__ import annotations

import re
from collections.abc import Iterable
from decimal import Decimal
from itertools import combinations, pairwise

from megatron_ext.data.rewriting.checking.quantities import MONTH, Quantities, Quantity

_OF_A_MONTH = re.compile(r"\s*(?:[^\W\d_]{1,3}|/)?\s*")
"""Between a day and its month: at most a short word."""

Amount = tuple[Decimal, str]
"""Size and dimension."""


def has_mismatch(source: Quantities, other: Quantities) -> bool:
    """Whether numbers of the source came to stand where others stood: pairs in another order or of others, values whose
    unit is another, values that exchanged what they count.
    """
    return (any(_is_new_pair(pair, source, other) for pair in other.pairs) or _have_exchanged(source, other)
            or any(_has_other_unit(one, source) for one in other.exact) or _count_each_others(source, other)
            or _has_other_month(source, other))


def _is_new_pair(pair: tuple[Quantity, Quantity], source: Quantities, other: Quantities) -> bool:
    """Stands in no pair of the source, or in the other order: of numbers of the source, or in the place of its only
    lost pair, of which it has one number (2 a 2, 3 a 2).
    """
    first, second = (one.value for one in pair)
    known, kept = ({(one.value, two.value) for one, two in text.pairs} for text in (source, other))
    if (first, second) in known or first == second:
        return False
    if (second, first) in known:
        return True
    lost = known - kept
    broken = {value for one in lost for value in one}
    return not broken.isdisjoint((first, second)) and (
        len(lost) == 1 or {first, second} <= {one.value for one in source.exact})


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
    return _trade_places(*(_words_beside((one, one.noun) for one in text.exact if not one.dimension)
                           for text in (source, other)))


def _have_exchanged(source: Quantities, other: Quantities) -> bool:
    """Two amounts each follow the word that the other one followed: multa de 2%, juros de 1%."""
    return _trade_places(*(_words_beside((one, one.before) for one in text.exact) for text in (source, other)))


def _words_beside(pairs: Iterable[tuple[Quantity, str]]) -> dict[Amount, set[str]]:
    words: dict[Amount, set[str]] = {}
    for one, word in pairs:
        if word:
            words.setdefault((one.size, one.dimension), set()).add(word)
    return words


def _trade_places(there: dict[Amount, set[str]], here: dict[Amount, set[str]]) -> bool:
    """Two amounts stand beside none of their own words, but each beside one of the other's."""
    moved = [one for one in here if one in there and here[one].isdisjoint(there[one])]
    return any(here[one] & there[two] and here[two] & there[one] for one, two in combinations(moved, 2))
