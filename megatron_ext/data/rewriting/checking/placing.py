"""Does everything stand in its place? Numbers and names of a source that came to stand where others stood, and numbers
that went up and now go down. Clause by clause, by the words around them.
"""

from __future__ import annotations

import re
from bisect import bisect
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

from megatron_ext.data.rewriting.checking.lexicon import Lexicon
from megatron_ext.data.rewriting.checking.names import telling_names
from megatron_ext.data.rewriting.checking.polarity import AROUND_NUMBERS
from megatron_ext.data.rewriting.checking.quantities import ARTICLES, Quantities
from megatron_ext.data.rewriting.checking.text import Text, content_stems, fold, stem, words_of

_BRACKETED = re.compile(r"[(\[]([^\w()\[\]]*\d[^()\[\]]{0,15})[)\]]")
_NEW_THOUGHT = re.compile(r"[.!?;\n]\s*$")
_SENTENCE_END = re.compile(r"[.!?](?=\s)|\n")
_NO_CHANGES = ("time", "months", "month", "length")
"""Numbers of these mostly say when and where, not by how much."""
_STRONG, _VERY_STRONG = 2, 3
_WEAK_EXCHANGE = 2
"""Two synonyms may change places (6 funcionários and 1.340 empregados), names have none: they count twice."""

Anchor = tuple[str, ...]
"""A number (`#`, its size) or the words of a name."""


@dataclass(frozen=True)
class _Places:
    words: dict[Anchor, frozenset[str]]
    """Stems of the clauses in which an anchor stands, and the numbers there."""
    directions: dict[Anchor, frozenset[int]]
    """0: up, 1: down, of the clauses in which a number stands."""
    sentences: dict[Anchor, frozenset[int]]
    """Numbers of the sentences in which an anchor stands."""


def has_swapped(source: Text, text: Text, numbers: tuple[Quantities, Quantities], lexicon: Lexicon) -> bool:
    """Whether numbers or names of the source stand among the words of other ones: two that changed places, several that
    moved on, or one without any of its own words among many of another.
    """
    anchors = frozenset(name.words for name in telling_names(source, lexicon))
    telling = (frozenset(stem(word) for anchor in anchors for word in anchor),
               frozenset(("#", str(one.size)) for one in numbers[0].exact if one.dimension))
    there, here = (_places(one, anchors, lexicon) for one in numbers)
    for is_number in (True, False):
        shared = [anchor for anchor in there.words if anchor in here.words and (anchor[0] == "#") == is_number]
        if _moved(shared, there, here, telling):
            return True
    return any(_turned(there.directions[anchor], here.directions[anchor])
               for anchor in there.directions if anchor in here.directions)


def _moved(anchors: list[Anchor], there: _Places, here: _Places,
           telling: tuple[frozenset[str], frozenset[Anchor]]) -> bool:
    named, measured = telling
    num_strong = 0
    taken: dict[Anchor, Anchor] = {}
    gained: dict[Anchor, int] = {}
    for one in anchors:
        own, other, other_place = _best(one, anchors, there.words, here.words)
        if other > own:
            taken[one] = other_place
            gained[one] = other - own + (one in measured
                                         or not named.isdisjoint(here.words[one] & there.words[other_place]))
        if own == 0 and other >= _VERY_STRONG and _are_apart(one, other_place, there, here):
            return True
        num_strong += own == 0 and other >= _STRONG
    return num_strong > 1 or sum(gained[one] for one in taken if _returns(one, taken)) > _WEAK_EXCHANGE


def _are_apart(one: Anchor, other: Anchor, there: _Places, here: _Places) -> bool:
    """Whether no sentence has both: clauses of one sentence are often joined and parted, those of numbers both ways."""
    return there.sentences[one].isdisjoint(there.sentences[other]) and (
        one[0] != "#" or here.sentences[one].isdisjoint(here.sentences[other]))


def _returns(one: Anchor, taken: dict[Anchor, Anchor]) -> bool:
    """Whether it took the place of one that took the place of … it."""
    seen, place = {one}, taken.get(one)
    while place is not None and place not in seen:
        seen.add(place)
        place = taken.get(place)
    return place == one


def _best(one: Anchor, anchors: list[Anchor], there: dict[Anchor, frozenset[str]],
          here: dict[Anchor, frozenset[str]]) -> tuple[int, int, Anchor]:
    """(words that an anchor keeps, words it shares with the place of the likeliest other one, that one).

    Words that both places have say nothing.
    """
    best = (0, 0, one)
    for other in anchors:
        if other != one and not here[one].issuperset(_own_stems(other)):  # else the words may belong to either
            common = there[one] & there[other]
            own, taken = len(here[one] & there[one] - common), len(here[one] & there[other] - common)
            if taken - own > best[1] - best[0]:
                best = (own, taken, other)
    return best


@lru_cache(maxsize=4096)
def _own_stems(anchor: Anchor) -> frozenset[str]:
    return frozenset({anchor[1]} if anchor[0] == "#" else map(stem, anchor))


def _turned(there: frozenset[int], here: frozenset[int]) -> bool:
    return len(there) == len(here) == 1 and there != here


@lru_cache(maxsize=1024)
def _places(numbers: Quantities, names: frozenset[Anchor], lexicon: Lexicon) -> _Places:
    words: dict[Anchor, set[str]] = {}
    directions: dict[Anchor, set[int]] = {}
    sentences: dict[Anchor, set[int]] = {}
    changes = {("#", str(one.size)) for one in numbers.exact if one.dimension not in _NO_CHANGES}
    ends = [match.start() for match in _SENTENCE_END.finditer(numbers.reworded)]
    for start, end in _clauses(numbers.reworded, lexicon):
        in_clause = words_of(numbers.reworded[start:end])
        found: list[Anchor] = [("#", str(one.size)) for one in numbers.exact
                               if start <= one.place < end and (one.in_digits or one.value > ARTICLES)]
        stems = _telling_stems(in_clause, lexicon) | {size for _, size in found}
        turns = {side for word in in_clause for pair, side in lexicon.directions.of(word) if pair == AROUND_NUMBERS}
        if not lexicon.negations.exact.isdisjoint(in_clause):
            turns = set()
        for anchor in found:
            if anchor in changes:
                directions.setdefault(anchor, set()).update(turns)
        folded = set(map(fold, in_clause))
        for anchor in [*found, *(name for name in names if folded.issuperset(name))]:
            sentences.setdefault(anchor, set()).add(bisect(ends, start))
            words.setdefault(anchor, set()).update(stems - set(anchor) - content_stems(anchor, lexicon))
    return _Places(*({anchor: frozenset(found) for anchor, found in table.items() if found or table is words}
                     for table in (words, directions, sentences)))


def _telling_stems(words: list[str], lexicon: Lexicon) -> frozenset[str]:
    """Stems of content words that are neither units nor letters: kg/ha may be `quilos por hectare`."""
    return content_stems([word for word in words if len(word) > 1 and not lexicon.units.get(word)], lexicon)


def _clauses(text: str, lexicon: Lexicon) -> list[tuple[int, int]]:
    text = _BRACKETED.sub(lambda match: f" {match[1]} ", text)  # `Brasil (70%)`: of one clause
    ends = [0, *(match.end() for match in lexicon.clause_ends.finditer(text)), len(text)]
    clauses: list[tuple[int, int]] = []
    for start, end in (span for span in pairwise(ends) if span[0] < span[1]):
        if clauses and _leans(text, start, end, lexicon):
            clauses[-1] = (clauses[-1][0], end)
        else:
            clauses.append((start, end))
    return clauses


def _leans(text: str, start: int, end: int, lexicon: Lexicon) -> bool:
    """Whether a clause says nothing without the one before it: `crianças, com 71%`."""
    return (not _telling_stems(words_of(text[start:end]), lexicon)
            and not _NEW_THOUGHT.search(text[max(0, start - 3):start]))
