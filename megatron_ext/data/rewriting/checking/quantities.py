"""Numbers of a text by value and unit, however they are written: 45.000 = 45 mil = quarenta e cinco mil, 36 meses =
três anos, 14h30 = duas e meia da tarde.

A text is first reworded into digits (number words by text2num), then read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Context, Decimal
from functools import cache, lru_cache
from itertools import combinations, pairwise

from megatron_ext.data.rewriting.checking import rewording
from megatron_ext.data.rewriting.checking.lexicon import Lexicon
from megatron_ext.data.rewriting.checking.rewording import SIGN, value_of
from megatron_ext.data.rewriting.checking.text import WORD, stem

_ROMAN = re.compile(r"(?<!\w)(?=[IVXLC]{2,}(?!\w))(C{0,3}(?:XC|XL|L?X{0,3})(?:IX|IV|V?I{0,3}))(?!\w)")
_ROMAN_VALUES = {"I": 1, "V": 5, "X": 10, "L": 50, "C": 100}
_DIGIT_RUN = re.compile(r"\d+")
_BEFORE = re.compile(r"[^\W\d_]+(?:\s+[^\W\d_]{1,4}){0,2}\s*$")
MONTH = "month"
ARTICLES = Decimal(2)
_SMALL = Decimal(10)
_TELLING = 100
_MONEY = ("reais", "dollars", "euros", "pounds")
_TELLING_DIMENSIONS = ("percent", *_MONEY)
_YEARS = 1000, 2100
_ROUNDED = Context(prec=12)
"""1 h 25 min, in decimals of an hour, are 5,100 seconds."""
_DAY = Decimal(24 * 3600)
_HALF_DAY = _DAY / 2
_DAYS_OF_MONTH, _DAYS_OF_YEAR = 30, 365


@dataclass(frozen=True)
class Quantity:
    """A number of a text."""

    value: Decimal
    """As it is written, scale included (45 mil: 45000)."""
    dimension: str
    """Of its unit: time, months, mass, percent, …; empty: none, or none that is known."""
    size: Decimal
    """The value in the dimension's smallest unit."""
    noun: str
    """Stem of the next content word; empty at the end of a clause."""
    before: str
    """Stem of the content word before it, with at most prepositions between."""
    in_digits: bool
    """Whether the text itself has digits for it."""
    place: int
    """Where it is in the reworded text."""
    end: int

    @property
    def is_article(self) -> bool:
        """`um dia` may count nothing."""
        return not self.in_digits and self.value == 1

    def equals(self, other: Quantity) -> bool:
        """The same amount: of value where one has no unit, else of size; a time of day may lack its half."""
        if {self.dimension, other.dimension} == {"time", "months"}:
            return _is_as_long(*sorted((self, other), key=lambda one: one.dimension))
        if self.dimension and other.dimension and MONTH not in (self.dimension, other.dimension):
            return self.dimension == other.dimension and (
                self.size == other.size or (self.dimension == "time" and abs(self.size - other.size) == _HALF_DAY))
        return self.value == other.value


def _is_as_long(months: Quantity, time: Quantity) -> bool:
    """90 days are three months, 365 are a year."""
    days = time.size / _DAY
    return days in (_DAYS_OF_MONTH * months.size, _DAYS_OF_YEAR * months.size / 12)


@dataclass(frozen=True, eq=False)
class Quantities:
    """All numbers of a text."""

    exact: tuple[Quantity, ...]
    """Numbers that must be kept, and must not be new."""
    loose: frozenset[Decimal]
    """Values that words like `metade` and `segundo`, and digits in a word like `128GB`, may stand for."""
    pairs: tuple[tuple[Quantity, Quantity], ...]
    """Ranges, scores, changes: `de 7 a 10`, `entre 1864 e 1870`, `3 a 1`."""
    reworded: str
    """The text in which the places of the numbers are."""


@lru_cache(maxsize=1024)
def read_quantities(text: str, lexicon: Lexicon) -> Quantities:
    """The numbers of a text."""
    text = rewording.without_list_marks(text)
    romans = {Decimal(_roman_value(match[1])) for match in _ROMAN.finditer(text)}
    text, fractions = rewording.without_fractions(text, lexicon)
    digits_alone = rewording.in_digits(text, lexicon)
    reworded = rewording.words_in_digits(digits_alone, lexicon)
    number = _number(lexicon)
    in_digits = {(value_of(match["digits"], lexicon), bool(match["mark"])) for match in number.finditer(digits_alone)}
    exact = tuple(_exact(reworded, lexicon, in_digits))
    ordinals = {value_of(match["digits"], lexicon) for match in number.finditer(reworded) if match["mark"]}
    words = {Decimal(value) for word in WORD.findall(digits_alone.lower())
             for value in lexicon.loose_numbers.get(word) or ()}
    halves = {Decimal(match[1]) + Decimal("0.5") for match in lexicon.and_half.finditer(reworded)}
    glued = {value_of(digits, lexicon) for match in number.finditer(reworded) if _is_glued(match, lexicon)
             for digits in (match["digits"], *_DIGIT_RUN.findall(match["letters"]))}
    loose = frozenset(romans | ordinals | words | fractions | halves | glued)
    return Quantities(exact, loose, tuple(_pairs(reworded, exact, lexicon)), reworded)


def missing(source: Quantities, other: Quantities) -> list[Quantity]:
    """Numbers of the source that the other text has in no form."""
    return [one for one in _distinct(source.exact)
            if (one.in_digits or one.value > ARTICLES) and one.value not in other.loose
            and not any(one.equals(found) for found in other.exact)]


def new(source: Quantities, other: Quantities) -> list[Quantity]:
    """Numbers of the other text that the source has in no form; small ones in words may count what the source lists."""
    has_months = any(one.dimension == MONTH for one in source.exact)
    return [one for one in _distinct(other.exact)
            if (has_months or one.dimension != MONTH) and one.value not in source.loose
            and (one.in_digits or one.value > _SMALL or one.dimension in _MONEY)
            and not any(one.equals(found) for found in source.exact) and not _follows(one, source)]


def _follows(one: Quantity, source: Quantities) -> bool:
    """Whether it follows from years of the source: 1962 from `1959` and `três anos depois`, 94 from 1905 and 1999."""
    years = [found.value for found in source.exact if _YEARS[0] <= found.value <= _YEARS[1] and not found.dimension]
    if _YEARS[0] <= one.value <= _YEARS[1]:
        spans = [found.size / 12 for found in source.exact if found.dimension == "months"]
        return any(abs(abs(one.value - year) - span) < 1 for year in years for span in spans)
    return one.dimension in ("", "months") and any(abs(first - second) == one.value
                                                   for first, second in combinations(years, 2))


def compare(source: Quantities, other: Quantities) -> tuple[list[Quantity], list[Quantity]]:
    """(lost, new), as far as they tell something. A small number that takes no other's place may be a count, an age or
    another unit, and one small number alone that is lost may stand in words that no list has.
    """
    lost, found = missing(source, other), new(source, other)
    if not lost:
        found = [one for one in found if one.value >= _TELLING or one.dimension in _TELLING_DIMENSIONS]
    if len(lost) == 1 and lost[0].value < _TELLING and not found:
        lost = []
    return lost, found


def num_distinct(quantities: Quantities) -> int:
    """How many different numbers there are."""
    return len(_distinct(quantities.exact))


def numbers_per_100_words(text: str, lexicon: Lexicon) -> float:
    """Number density of a text."""
    return 100 * num_distinct(read_quantities(text, lexicon)) / max(1, len(WORD.findall(text)))


def _distinct(quantities: tuple[Quantity, ...]) -> list[Quantity]:
    found: list[Quantity] = []
    for one in quantities:
        if not any(one.equals(known) for known in found):
            found.append(one)
    return found


def _exact(text: str, lexicon: Lexicon, in_digits: set[tuple[Decimal, bool]]) -> Iterator[Quantity]:
    months = _months(lexicon)
    for match in _number(lexicon).finditer(text):
        if _is_glued(match, lexicon):
            continue
        value = value_of(match["digits"], lexicon)
        following = text[match.end():match.end() + 60]
        written = (value, bool(match["mark"])) in in_digits
        if match["mark"] and not written:
            continue  # an ordinal in words: `segundo` is mostly something else
        dimension, factor, noun = _unit(match, following, lexicon)
        if not dimension and lexicon.clock.search(text[:match.start("digits")]) and value <= 24 and not noun:
            dimension, factor = "time", Decimal(3600)
        before = _noun_before(text[:match.start()], lexicon)
        yield Quantity(value, dimension, _ROUNDED.multiply(value, factor), noun, before, written,
                       match.start("digits"), match.end())
    for match in WORD.finditer(text):
        if number := months.get(match[0]) or months.get(match[0].lower()):
            value = Decimal(number)
            yield Quantity(value, MONTH, value, "", "", True, match.start(), match.end())


def _is_glued(match: re.Match[str], lexicon: Lexicon) -> bool:
    """Whether letters follow at once that are no known unit: of a name (802.1p) or a unit that no list has (128GB)."""
    return bool(match["letters"]) and not match["mark"] and not lexicon.units.get(match["letters"].lower())


def _unit(match: re.Match[str], following: str, lexicon: Lexicon) -> tuple[str, Decimal, str]:
    """(dimension, factor, stem of the noun) of a number."""
    words = re.match(r"\s?(%|€)|[ \t]?(?:de )?([^\W\d_]+)", following)
    for word in (match["letters"], match["money"], *(words.groups() if words else ())):
        known = lexicon.units.get(word.lower()) if word else None
        if known:
            return known[0], Decimal(str(known[1])), stem(word.lower())
    noun = (words[2] or "").lower() if words and not match["mark"] else ""
    return "", Decimal(1), "" if noun in lexicon.function_words else stem(noun)


def _noun_before(text: str, lexicon: Lexicon) -> str:
    words = _BEFORE.search(text[-40:])
    found = (word.lower() for word in reversed(words[0].split() if words else []) if word.isalpha())
    return next((stem(word) for word in found
                 if word not in lexicon.function_words and word not in lexicon.approximations), "")


def _pairs(text: str, exact: tuple[Quantity, ...], lexicon: Lexicon) -> Iterator[tuple[Quantity, Quantity]]:
    """Neighbours between which nothing but the words of a range stands, and the unit of the first."""
    ordered = sorted((one for one in exact if one.dimension != MONTH), key=lambda one: one.place)
    for first, second in pairwise(ordered):
        between = text[first.end:second.place]
        before = text[max(0, first.place - 12):first.place]
        if len(between) < 40 and any(left.search(before) and middle.fullmatch(between)
                                     for left, middle in _range_patterns(lexicon)):
            yield first, second


@cache
def _months(lexicon: Lexicon) -> dict[str, int]:
    """Name -> number; where names have a capital, `may` is none, MAY is."""
    numbered = list(enumerate(lexicon.months, start=1))
    return {name: number for number, name in numbered} | {name.upper(): number for number, name in numbered}


@cache
def _number(lexicon: Lexicon) -> re.Pattern[str]:
    return re.compile(rf"(?P<money>(?:R|US|U)?\$|€|£)?\s?(?<![\w])(?P<digits>{rewording.digits(lexicon)})"
                      r"(?P<mark>[ºª°ᵒᵃ]ˢ?|st|nd|rd|th)?(?P<letters>\w*)")


@cache
def _range_patterns(lexicon: Lexicon) -> list[tuple[re.Pattern[str], re.Pattern[str]]]:
    """`de {} a {}` -> what stands before the first number, and between the two (a word for a unit may, too)."""
    patterns = []
    for form in lexicon.ranges:
        before, between, _ = (part.strip() for part in form.split("{}"))
        left = rf"(?:^|\W){before}\s+{SIGN}$" if before else ""
        middle = rf"\s*(?:%\s*|[^\W\d_]+\s+)?(?:{between})\s+(?:[ao]s? )?{SIGN}"
        patterns.append((re.compile(left, re.IGNORECASE), re.compile(middle, re.IGNORECASE)))
    return patterns


def _roman_value(digits: str) -> int:
    values = [_ROMAN_VALUES[digit] for digit in digits]
    return sum(-value if value < following else value for value, following in pairwise([*values, 0]))
