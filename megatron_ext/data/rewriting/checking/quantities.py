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

from text_to_num import alpha2digit

from megatron_ext.data.rewriting.checking.lexicon import Lexicon
from megatron_ext.data.rewriting.checking.text import WORD, stem

_GROUPED = r"\d{1,3}(?:[.\u00a0\u202f\u2009 ]\d{3})+(?!\d)"
_DIGITS = rf"(?:{_GROUPED}(?:,\d+)?|\d{{1,3}}(?:,\d{{3}}){{2,}}(?:\.\d+)?|\d+(?:[.,]\d+)*)"
_CLOCK = re.compile(r"(?<![\w.,])(\d{1,2})(?:\s?[hH](\d{2})(?:\s?min)?|:(\d{2}))(?!\d)(?!-\d+(?![\d:hH]))")
_HOURS = re.compile(r"(?<![\w.,])(\d{1,2})\s?[hH]s?(?!\w)")
_DATE = re.compile(r"(?<![\d/.-])(\d{1,2})([/.-])(\d{1,2})\2(\d{4}|\d{2})(?![\d/])")
_ROMAN = re.compile(r"(?<!\w)(?=[IVXLC]{2,}(?!\w))(C{0,3}(?:XC|XL|L?X{0,3})(?:IX|IV|V?I{0,3}))(?!\w)")
_ROMAN_VALUES = {"I": 1, "V": 5, "X": 10, "L": 50, "C": 100}
_LIST_MARK = re.compile(r"^[ \t]*(?:\d{1,2}[.)]|\(\d{1,2}\))(?=\s)", re.MULTILINE)
_LIST_MARK_INSIDE = re.compile(r"(\([^()]*\))|(?<=[\s;:])\d{1,2}\)(?=\s)")  # what is in brackets is none
_FRACTION = re.compile(r"(?<![\w.,/])(?:(\d+) )?(\d{1,2})/(\d{1,2})(?![\d/])")
_SHARED_SCALE_FACTOR = 10
"""De 180 para 218 bilhões; but 500 a 10 mil are 500."""
_NUMBER = re.compile(rf"(?P<money>(?:R|US|U)?\$|€|£)?\s?(?<![\w])(?P<digits>{_DIGITS})"
                     r"(?P<mark>[ºª°ᵒᵃ]ˢ?|th|nd|rd)?(?P<letters>\w*)")
_BEFORE = re.compile(r"[^\W\d_]+(?:\s+[^\W\d_]{1,4}){0,2}\s*$")
_SIGN = r"[-−+]?(?:R\$\s?|€\s?)?"
_MONTH = "month"
ARTICLES = Decimal(2)
_SMALL, _THOUSAND = Decimal(10), Decimal(1000)
_TELLING = 100
_TELLING_DIMENSIONS = ("percent", "reais", "dollars", "euros", "pounds")
_YEARS = 1000, 2100
_ROUNDED = Context(prec=12)
"""1 h 25 min, in decimals of an hour, are 5,100 seconds."""
_HALF_DAY = Decimal(12 * 3600)


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

    def equals(self, other: Quantity) -> bool:
        """The same amount: of value where one has no unit, else of size; a time of day may lack its half."""
        if self.dimension and other.dimension and _MONTH not in (self.dimension, other.dimension):
            return self.dimension == other.dimension and (
                self.size == other.size or (self.dimension == "time" and abs(self.size - other.size) == _HALF_DAY))
        return self.value == other.value


@dataclass(frozen=True, eq=False)
class Quantities:
    """All numbers of a text."""

    exact: tuple[Quantity, ...]
    """Numbers that must be kept, and must not be new."""
    loose: frozenset[Decimal]
    """Values that words like `metade` and `segundo` may stand for."""
    pairs: tuple[tuple[Quantity, Quantity], ...]
    """Ranges, scores, changes: `de 7 a 10`, `entre 1864 e 1870`, `3 a 1`."""
    reworded: str
    """The text in which the places of the numbers are."""


@lru_cache(maxsize=1024)
def read_quantities(text: str, lexicon: Lexicon) -> Quantities:
    """The numbers of a text."""
    text = _LIST_MARK_INSIDE.sub(lambda match: match[1] or " ", _LIST_MARK.sub(" ", text))
    romans = {Decimal(_roman_value(match[1])) for match in _ROMAN.finditer(text)}
    text, fractions = _without_fractions(text)
    digits_alone = _reworded(text, lexicon)
    reworded = _with_parts(alpha2digit(digits_alone, lexicon.language, 0), lexicon)
    in_digits = {_value(match["digits"]) for match in _NUMBER.finditer(digits_alone)}
    exact = tuple(_exact(reworded, lexicon, in_digits))
    ordinals = {_value(match["digits"]) for match in _NUMBER.finditer(reworded) if match["mark"]}
    words = {Decimal(value) for word in WORD.findall(digits_alone.lower())
             for value in lexicon.loose_numbers.get(word) or ()}
    halves = {Decimal(match[1]) + Decimal("0.5") for match in lexicon.and_half.finditer(reworded)}
    loose = frozenset(romans | ordinals | words | fractions | halves)
    return Quantities(exact, loose, tuple(_pairs(reworded, exact, lexicon)), reworded)


def missing(source: Quantities, other: Quantities) -> list[Quantity]:
    """Numbers of the source that the other text has in no form."""
    return [one for one in _distinct(source.exact)
            if (one.in_digits or one.value > ARTICLES) and one.value not in other.loose
            and not any(one.equals(found) for found in other.exact)]


def new(source: Quantities, other: Quantities) -> list[Quantity]:
    """Numbers of the other text that the source has in no form; small ones in words may count what the source lists."""
    has_months = any(one.dimension == _MONTH for one in source.exact)
    return [one for one in _distinct(other.exact)
            if (has_months or one.dimension != _MONTH) and one.value not in source.loose
            and (one.in_digits or one.value > _SMALL)
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


def has_mismatch(source: Quantities, other: Quantities) -> bool:
    """Whether numbers of the source came to stand where others stood: pairs in another order or of others, values whose
    unit is another, values that exchanged what they count.
    """
    return (any(_is_new_pair(pair, source, other) for pair in other.pairs) or _have_exchanged(source, other)
            or any(_has_other_unit(one, source) for one in other.exact) or _count_each_others(source, other))


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
    return bool(one.dimension and same_value) and all(
        found.dimension and not one.equals(found) for found in same_value) and not any(
        one.equals(found) for found in source.exact)


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


def _distinct(quantities: tuple[Quantity, ...]) -> list[Quantity]:
    found: list[Quantity] = []
    for one in quantities:
        if not any(one.equals(known) for known in found):
            found.append(one)
    return found


def _reworded(text: str, lexicon: Lexicon) -> str:
    """Dates, hours and scaled numbers in plain digits, each number apart."""
    text = _DATE.sub(lambda match: f" {match[1]} / {_month(match[3], lexicon)} / {match[4]} ", text)
    hour = lexicon.hour
    text = _CLOCK.sub(lambda match: f"{Decimal(int(match[1])) + Decimal(int(match[2] or match[3])) / 60} {hour}", text)
    text = _HOURS.sub(lambda match: f"{match[1]} {hour}", text)
    for pattern, words in lexicon.rewordings:
        text = pattern.sub(words, text)
    scaled, shared, half, in_words = _scale_patterns(lexicon)
    text = in_words.sub(lambda match: f"{match[1]} {match[4]}{match[2]}{match[3]} {match[4]}"
                        if _is_number(match[1], lexicon) and _is_number(match[3], lexicon) else match[0], text)
    text = shared.sub(lambda match: f"{match[1]} {match[4]}{match[2]}{match[3]} {match[4]}"
                      if _share_a_scale(_value(match[1]), _value(match[3])) else match[0], text)
    text = half.sub(lambda match: f"{match[1]} <{lexicon.scales[match[1].lower()] // 2}>", text)
    return scaled.sub(lambda match: _plain(_value(match[1]) * lexicon.scales[match[2].lower()]), text)


def _is_number(word: str, lexicon: Lexicon) -> bool:
    return word.lower() not in lexicon.scales and alpha2digit(word, lexicon.language, 0).isdigit()


def _share_a_scale(one: Decimal, other: Decimal) -> bool:
    return one < _THOUSAND and one < _SHARED_SCALE_FACTOR * other and other < _SHARED_SCALE_FACTOR * one


def _without_fractions(text: str) -> tuple[str, set[Decimal]]:
    """The text without 1/2, 3/4 (or 7/9, a date), and the values that these may stand for."""
    values: set[Decimal] = set()
    for whole, part, parts in (match.groups() for match in _FRACTION.finditer(text)):
        values |= {Decimal(part), Decimal(parts), Decimal(whole or 0)}
        share = Decimal(part) / Decimal(parts) if int(parts) else Decimal(part)
        values |= {int(whole or 0) + round(share, 2), 100 * share}
    return (_FRACTION.sub(" ", text) if values else text), values


def _month(digits: str, lexicon: Lexicon) -> str:
    return lexicon.months[int(digits) - 1] if 1 <= int(digits) <= len(lexicon.months) else digits


def _with_parts(text: str, lexicon: Lexicon) -> str:
    """`2 e meia` -> `2.5 horas`, `2000000 <500000>` -> `2500000`, `1 metro e 20` -> `1.20 metro`, shares -> percent."""
    text = re.sub(rf"(?<![\w.,])(\d{{1,2}})(?: horas?)? {lexicon.half_past.pattern}(?: horas?)?",
                  lambda match: f"{match[1]}.5 {lexicon.hour}", text)
    text = lexicon.hours_minutes.sub(
        lambda match: f"{Decimal(int(match[1])) + Decimal(int(match[2])) / 60} {lexicon.hour}", text)
    text = re.sub(r"(\d+) <(\d+)>", lambda match: str(int(match[1]) + int(match[2])), text)
    text = re.sub(rf"(?<![\w.,])(\d+) {lexicon.hundredths.pattern}",
                  lambda match: f"{int(match[1]) + Decimal(match[3]) / 100} {match[2]}", text)
    text = lexicon.share_turned.sub(lambda match: _percent(match[0], match[2], match[1]), text)
    return lexicon.share_of.sub(lambda match: _percent(match[0], match[1], match[2]), text)


def _percent(written: str, part: str, whole: str) -> str:
    """`4 em cada 10` -> `40 %`."""
    if not 0 < int(part) <= int(whole) or int(whole) == 1:
        return written
    return f"{_plain(round(Decimal(100 * int(part)) / int(whole), 2))} %"


def _exact(text: str, lexicon: Lexicon, in_digits: set[Decimal]) -> Iterator[Quantity]:
    months = {name: number for number, name in enumerate(lexicon.months, start=1)}
    for match in _NUMBER.finditer(text):
        if match["letters"] and not match["mark"] and not lexicon.units.get(match["letters"].lower()):
            continue  # 802.1p, 3D, 4x4: names, not numbers
        value = _value(match["digits"])
        following = text[match.end():match.end() + 60]
        if match["mark"] and value not in in_digits:
            continue  # an ordinal in words: `segundo` is mostly something else
        dimension, factor, noun = _unit(match, following, lexicon)
        if not dimension and lexicon.clock.search(text[:match.start("digits")]) and value <= 24 and not noun:
            dimension, factor = "time", Decimal(3600)
        before = _noun_before(text[:match.start()], lexicon)
        yield Quantity(value, dimension, _ROUNDED.multiply(value, factor), noun, before, value in in_digits,
                       match.start("digits"), match.end())
    for match in WORD.finditer(text.lower()):
        if match[0] in months:
            value = Decimal(months[match[0]])
            yield Quantity(value, _MONTH, value, "", "", True, match.start(), match.end())


def _unit(match: re.Match[str], following: str, lexicon: Lexicon) -> tuple[str, Decimal, str]:
    """(dimension, factor, stem of the noun) of a number."""
    words = re.match(r"\s?(%|€)|[ \t]?(?:de )?([^\W\d_]+)", following)
    for word in (match["letters"], match["money"], *(words.groups() if words else ())):
        known = lexicon.units.get(word.lower()) if word else None
        if known:
            return known[0], Decimal(str(known[1])), stem(word.lower())
    noun = (words[2] or "").lower() if words else ""
    return "", Decimal(1), "" if noun in lexicon.function_words else stem(noun)


def _noun_before(text: str, lexicon: Lexicon) -> str:
    words = _BEFORE.search(text[-40:])
    found = (word.lower() for word in reversed(words[0].split() if words else []) if word.isalpha())
    return next((stem(word) for word in found
                 if word not in lexicon.function_words and word not in lexicon.approximations), "")


def _pairs(text: str, exact: tuple[Quantity, ...], lexicon: Lexicon) -> Iterator[tuple[Quantity, Quantity]]:
    """Neighbours between which nothing but the words of a range stands, and the unit of the first."""
    ordered = sorted(exact, key=lambda one: one.place)
    for first, second in pairwise(ordered):
        between = text[first.end:second.place]
        before = text[max(0, first.place - 12):first.place]
        if len(between) < 40 and any(left.search(before) and middle.fullmatch(between)
                                     for left, middle in _range_patterns(lexicon)):
            yield first, second


@cache
def _range_patterns(lexicon: Lexicon) -> list[tuple[re.Pattern[str], re.Pattern[str]]]:
    """`de {} a {}` -> what stands before the first number, and between the two (a word for a unit may, too)."""
    patterns = []
    for form in lexicon.ranges:
        before, between, _ = (part.strip() for part in form.split("{}"))
        left = rf"(?:^|\W){before}\s+{_SIGN}$" if before else ""
        middle = rf"\s*(?:%\s*|[^\W\d_]+\s+)?(?:{between})\s+(?:[ao]s? )?{_SIGN}"
        patterns.append((re.compile(left, re.IGNORECASE), re.compile(middle, re.IGNORECASE)))
    return patterns


@cache
def _scale_patterns(lexicon: Lexicon) -> tuple[re.Pattern[str], ...]:
    """(45 mil, 180 para 218 bilhões, milhões e meio, vinte a trinta mil)"""
    scales = "|".join(sorted(map(re.escape, lexicon.scales), key=len, reverse=True))
    number = rf"(?<![\w.,])({_DIGITS})"
    return (re.compile(rf"{number}[ \u00a0]({scales})(?!\w)", re.IGNORECASE),
            re.compile(rf"{number}({lexicon.shared_scale}{_SIGN})({_DIGITS})[ \u00a0]({scales})(?!\w)", re.IGNORECASE),
            re.compile(rf"(?<!\w)({scales}){lexicon.and_a_half}", re.IGNORECASE),
            re.compile(rf"(?<=\s)([^\W\d_]+)({lexicon.shared_scale_words})([^\W\d_]+) ({scales})(?!\w)", re.IGNORECASE))


def _value(digits: str) -> Decimal:
    """Of digits whose thousands may be grouped by points, spaces or (twice and more) commas."""
    if re.fullmatch(_GROUPED + r"(?:,\d+)?", digits):
        digits = re.sub(r"[^\d,]", "", digits).replace(",", ".")
    elif re.fullmatch(r"\d{1,3}(?:,\d{3}){2,}(?:\.\d+)?", digits):
        digits = digits.replace(",", "")
    elif digits.count(".") + digits.count(",") == 1:
        digits = digits.replace(",", ".")
    elif not digits.isdigit():
        digits = re.sub(r"\D", "", digits)  # 1.2.3, 10,11,12: a name of digits
    return Decimal(digits).normalize() + 0


def _plain(value: Decimal) -> str:
    return f"{value.normalize():f}"


def _roman_value(digits: str) -> int:
    values = [_ROMAN_VALUES[digit] for digit in digits]
    return sum(-value if value < following else value for value, following in pairwise([*values, 0]))
