"""What the checks know of a language: one folder a language under `languages/`, read once."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from megatron_ext.errors import UserError

LANGUAGES_FOLDER = Path(__file__).parents[1] / "languages"
DEFAULT_LANGUAGE = "pt"
LEXICON_FILE, THRESHOLDS_FILE = "lexicon.yaml", "thresholds.yaml"


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

    def get(self, word: str) -> Any:
        """The value of a word; None without one."""
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


@dataclass(frozen=True, eq=False)
class Lexicon:
    """A language. `languages/<code>/lexicon.yaml` says what each field is for."""

    language: str
    punkt: str
    other_languages: tuple[str, ...]
    function_words: WordSet
    word_endings: WordSet
    word_beginnings: WordSet
    dangling_words: WordSet
    scales: dict[str, int]
    rewordings: tuple[tuple[re.Pattern[str], str], ...]
    loose_numbers: WordMap
    units: WordMap
    hour: str
    and_a_half: str
    sum_word: str
    hundredths: re.Pattern[str]
    share_of: re.Pattern[str]
    share_turned: re.Pattern[str]
    approximations: WordSet
    shared_scale: str
    shared_scale_words: str
    and_half: re.Pattern[str]
    hours_minutes: re.Pattern[str]
    half_past: re.Pattern[str]
    clock: re.Pattern[str]
    months: tuple[str, ...]
    ranges: tuple[str, ...]
    name_particles: WordSet
    common_capitals: WordSet
    common_names: tuple[str, ...]
    related_names: dict[str, tuple[str, ...]]
    institutions: WordSet
    negations: WordSet
    conjunctions: WordSet
    not_negations: re.Pattern[str]
    without: WordSet
    negative_words: WordSet
    limiting_words: WordSet
    directions: Directions
    clause_ends: re.Pattern[str]
    refusal_triggers: WordSet
    refusal: re.Pattern[str]
    meta_words: WordSet
    talk: WordSet
    talk_triggers: WordSet
    talk_phrases: tuple[re.Pattern[str], ...]
    labels: re.Pattern[str]
    question_labels: tuple[str, ...]
    answer_labels: tuple[str, ...]
    unanswered: re.Pattern[str]


def languages() -> list[str]:
    """Codes of the languages that there are."""
    return sorted(file.parent.name for file in LANGUAGES_FOLDER.glob(f"*/{LEXICON_FILE}"))


@cache
def load_lexicon(language: str = DEFAULT_LANGUAGE) -> Lexicon:
    """The lexicon of a language (ISO 639-1). Raises UserError for one that is not there."""
    if language not in languages():
        raise UserError(f"language = {language!r}: there is no such folder in {LANGUAGES_FOLDER}; there are "
                        f"{', '.join(languages())}")
    values = yaml.safe_load((LANGUAGES_FOLDER / language / LEXICON_FILE).read_text(encoding="utf-8"))
    sets = ("function_words", "word_endings", "word_beginnings", "dangling_words", "approximations", "name_particles",
            "common_capitals", "institutions", "negations", "conjunctions", "without", "negative_words",
            "limiting_words", "meta_words", "talk", "refusal_triggers", "talk_triggers")
    lists = ("other_languages", "common_names", "months", "ranges", "question_labels", "answer_labels")
    patterns = ("clause_ends", "hundredths", "share_of", "share_turned",
                "and_half", "hours_minutes", "half_past", "clock", "refusal", "unanswered")
    return Lexicon(**{
        **values, **{name: WordSet(values[name]) for name in sets}, **{name: tuple(values[name]) for name in lists},
        **{name: _pattern(values[name]) for name in patterns},
        "rewordings": tuple((_pattern(pattern), words) for pattern, words in values["rewordings"]),
        "loose_numbers": WordMap(values["loose_numbers"]), "units": WordMap(values["units"]),
        "related_names": {word: tuple(names) for word, names in values["related_names"].items()},
        "not_negations": _any_of(values["not_negations"]),
        "directions": Directions(values["directions"]),
        "talk_phrases": tuple(map(_pattern, values["talk_phrases"])),
        "labels": _any_of(values["labels"]),
    })


def _pattern(text: str) -> re.Pattern[str]:
    return re.compile(" ".join(text.split()).replace(" |", "|").replace(" (?!", "(?!"), re.IGNORECASE)


def _any_of(phrases: Iterable[str]) -> re.Pattern[str]:
    longest_first = sorted(phrases, key=len, reverse=True)
    return re.compile(rf"(?:{'|'.join(map(re.escape, longest_first))})(?!\w)", re.IGNORECASE)
