"""What the checks know of a language: lexicon.yaml of its pack, read once."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields
from functools import cache
from typing import Any

from megatron_ext.data.rewriting.packs import (
    DEFAULT_LANGUAGE,
    LEXICON_FILE,
    check_keys,
    has_punkt_model,
    language_folder,
)
from megatron_ext.errors import UserError
from megatron_ext.settings_file import read_file, shorten


class WordSet:
    """Words in small letters; an entry that ends with `~` stands for all words that begin so."""

    def __init__(self, entries: str | Iterable[Any]) -> None:
        words = entries.split() if isinstance(entries, str) else [str(entry) for entry in entries]
        self.exact = frozenset(word for word in words if not word.endswith("~"))
        self._has = _Known(self.exact, tuple(word[:-1] for word in words if word.endswith("~"))).__getitem__

    def __contains__(self, word: str) -> bool:
        return self._has(word)

    def has_any_of(self, words: Iterable[str]) -> bool:
        """Whether one of the words is in the set."""
        return any(map(self._has, words))

    def among(self, words: Iterable[str]) -> frozenset[str]:
        """Those of the words that are in the set."""
        return frozenset(filter(self._has, words))


class _Known(dict[str, bool]):
    """Word -> whether it is one; the same words come again and again."""

    def __init__(self, exact: frozenset[str], beginnings: tuple[str, ...]) -> None:
        super().__init__()
        self._exact, self._beginnings = exact, beginnings

    def __missing__(self, word: str) -> bool:
        found = self[word] = word in self._exact or word.startswith(self._beginnings)
        return found


class WordMap:
    """The same with a value for each entry; the longest beginning counts."""

    def __init__(self, entries: dict[Any, Any]) -> None:
        values = {str(word): value for word, value in entries.items()}
        self._exact = {word: value for word, value in values.items() if not word.endswith("~")}
        self._beginnings = sorted(((word[:-1], value) for word, value in values.items() if word.endswith("~")),
                                  key=lambda pair: -len(pair[0]))
        self._known: dict[str, Any] = {}

    def get(self, word: str) -> Any:
        """The value of a word; None without one."""
        if word not in self._known:
            self._known[word] = self._find(word)
        return self._known[word]

    def _find(self, word: str) -> Any:
        if word in self._exact:
            return self._exact[word]
        return next((value for beginning, value in self._beginnings if word.startswith(beginning)), None)


class Directions:
    """Pairs of opposites."""

    def __init__(self, pairs: Iterable[tuple[Any, Any]]) -> None:
        self._sides = [((number, side), WordSet(words)) for number, pair in enumerate(pairs)
                       for side, words in enumerate(pair)]
        self._known: dict[str, frozenset[tuple[int, int]]] = {}

    def of(self, word: str) -> frozenset[tuple[int, int]]:
        """(number of the pair, side 0 or 1) of each direction that the word says."""
        known = self._known.get(word)
        if known is None:
            known = self._known[word] = frozenset(place for place, words in self._sides if word in words)
        return known


Pattern = re.Pattern[str]
Phrases = re.Pattern[str]
"""Of any of some phrases."""
PatternText = str
"""Part of larger patterns."""


@dataclass(frozen=True, eq=False)
class Lexicon:
    """A language. `languages/pt/lexicon.yaml` says what each field is for; what a language has no use for is empty."""

    language: str
    """ISO 639-1; wordfreq must have its words, and text2num its numbers in words."""
    punkt: str
    other_languages: tuple[str, ...]
    function_words: WordSet
    word_endings: WordSet
    word_beginnings: WordSet
    dangling_words: WordSet
    decimal_mark: str
    month_first: bool
    scales: dict[str, int]
    rewordings: tuple[tuple[Pattern, str], ...]
    loose_numbers: WordMap
    units: WordMap
    hour: str
    and_a_half: PatternText
    sum_word: PatternText
    hundredths: Pattern
    share_of: Pattern
    share_turned: Pattern
    approximations: WordSet
    shared_scale: PatternText
    shared_scale_words: PatternText
    and_half: Pattern
    hours_minutes: Pattern
    half_past: Pattern
    clock: Pattern
    months: tuple[str, ...]
    ranges: tuple[str, ...]
    name_particles: WordSet
    common_capitals: WordSet
    common_names: tuple[str, ...]
    related_names: dict[str, tuple[str, ...]]
    institutions: WordSet
    negations: WordSet
    conjunctions: WordSet
    not_negations: Phrases
    without: WordSet
    negative_words: WordSet
    limiting_words: WordSet
    directions: Directions
    clause_ends: Pattern
    text_tag: str
    tags: Phrases
    polite_opening: PatternText
    announcement: PatternText
    intention: PatternText
    title: PatternText
    closing: PatternText
    closing_tells: Pattern
    polite_words: tuple[str, ...]
    refusal_triggers: WordSet
    refusal: Pattern
    meta_words: WordSet
    talk: WordSet
    talk_triggers: WordSet
    talk_phrases: tuple[Pattern, ...]
    labels: Phrases
    question_labels: tuple[str, ...]
    answer_labels: tuple[str, ...]
    unanswered: Pattern


@cache
def load_lexicon(language: str = DEFAULT_LANGUAGE) -> Lexicon:
    """The lexicon of a language: a code or a folder.

    Raises UserError for one that is not there, and for a file that lacks keys, has unknown ones or wrong values.
    """
    file = language_folder(language) / LEXICON_FILE
    values = read_file(file)
    kinds = {field.name: str(field.type) for field in fields(Lexicon)}
    check_keys(values, kinds, file)
    found: dict[str, Any] = {}
    mistakes = []
    for key, kind in kinds.items():
        try:
            found[key] = _READERS[kind](values[key])
        except (TypeError, ValueError, AttributeError, re.error) as error:
            mistakes.append(f"{key}: {shorten(str(error))}")
    if mistakes := mistakes or list(_mistakes(found)):
        raise UserError(f"{file}: {'; '.join(mistakes)}")
    return Lexicon(**found)


_GROUPS = {"hundredths": 2, "share_of": 2, "share_turned": 2, "hours_minutes": 2, "and_half": 1}
_NOTHING = "(?!)"
"""Pattern that fits nothing."""


def _mistakes(values: dict[str, Any]) -> Iterator[str]:
    """What other packages must know of a language, and what fits no number."""
    from text_to_num import alpha2digit
    from wordfreq import available_languages

    with_words, language = available_languages("best"), values["language"]
    for key, codes in (("language", [language]), ("other_languages", values["other_languages"])):
        if unknown := sorted(set(codes) - with_words.keys()):
            yield f"{key}: wordfreq has no words of {', '.join(unknown)}"
    try:
        alpha2digit("", language, 0)
    except ValueError as error:
        yield f"language: text2num: {error}"
    if not has_punkt_model(values["punkt"]):
        yield f"punkt: there is no model {values['punkt']!r}; it is named in English, portuguese"
    if values["decimal_mark"] not in (",", "."):
        yield f"decimal_mark: {values['decimal_mark']!r} is neither a comma nor a point"
    if len(values["months"]) not in (0, 12):
        yield f"months: there are {len(values['months'])}"
    for key, count in _GROUPS.items():
        if (found := values[key].groups) != count and values[key].pattern != _NOTHING:
            yield f"{key}: the pattern has {found} groups, needed are {count}"
    if wrong := [form for form in values["ranges"] if form.count("{}") != 2]:
        yield f"ranges: {wrong[0]!r} must have two {{}}"


def _pattern(text: str | None) -> Pattern:
    return re.compile(_pattern_text(text), re.IGNORECASE)


def _pattern_text(text: str | None) -> str:
    """A pattern on one line; without any, one that fits nothing."""
    lines = " ".join(_text(text or "").split()).replace(" |", "|").replace(" (?!", "(?!")
    return lines or _NOTHING


def _inner_pattern(text: str | None) -> str:
    re.compile(_text(text or ""))
    return text or _NOTHING


def _any_of(phrases: Iterable[str]) -> Phrases:
    longest_first = sorted(_texts(phrases), key=len, reverse=True)
    return re.compile(rf"(?:{'|'.join(map(re.escape, longest_first)) or _NOTHING})(?!\w)", re.IGNORECASE)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def _truth(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{value!r} is neither true nor false")
    return value


def _texts(values: Any) -> tuple[str, ...]:
    if values is not None and not isinstance(values, list):
        raise TypeError(f"{values!r} is no list")
    return tuple(map(_text, values or ()))


def _words(values: Any) -> WordSet:
    return WordSet(values if isinstance(values, str) else _texts(values))


def _scales(values: dict[str, Any] | None) -> dict[str, int]:
    if wrong := [word for word, value in (values or {}).items() if type(value) is not int]:
        raise TypeError(f"{wrong[0]} is no whole number")
    return dict(values or {})


def _word_map(values: Any) -> WordMap:
    if not all(isinstance(value, list) and value for value in (values or {}).values()):
        raise TypeError("each word has a list of values")
    return WordMap(values or {})


def _directions(pairs: Any) -> Directions:
    if not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs or ()):
        raise TypeError("each entry is a pair of lists")
    return Directions([tuple(map(_texts, pair)) for pair in pairs or ()])


_READERS: dict[str, Callable[[Any], Any]] = {
    "str": _text, "bool": _truth, "Pattern": _pattern, "PatternText": _inner_pattern, "Phrases": _any_of,
    "WordSet": _words, "WordMap": _word_map, "Directions": _directions, "dict[str, int]": _scales,
    "tuple[str, ...]": _texts,
    "tuple[Pattern, ...]": lambda values: tuple(map(_pattern, _texts(values))),
    "tuple[tuple[Pattern, str], ...]": lambda pairs: tuple((_pattern(one), _text(words)) for one, words in pairs or ()),
    "dict[str, tuple[str, ...]]": lambda values: {word: _texts(names) for word, names in (values or {}).items()},
}
"""Type of a field -> what makes it of a value of the file."""
