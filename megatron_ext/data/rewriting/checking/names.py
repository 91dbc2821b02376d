"""Names and acronyms of a text: which are kept, which are lost, which are new."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import pairwise

from megatron_ext.data.rewriting.checking.lexicon import Lexicon
from megatron_ext.data.rewriting.checking.text import WORD, Text, fold

_CAPITAL = r"[A-ZÀ-ÖØ-Þ]"
_NAME_WORD = rf"(?:d['’])?{_CAPITAL}[^\W\d_]*(?:['’]{_CAPITAL}[^\W\d_]+)?"
_BEGINNING = re.compile(r"(?:^|[.!?…:;\nº°ª§•]|[—–-]\s|[\"“«\[*#>])\W*$")
_SHARED_LETTERS = 4
_ROMAN = re.compile(r"[IVXLCDM]{2,}")
_ACRONYM = re.compile(r"(?<![^\W\d_])[A-ZÀ-Þ]{2,}(?![^\W\d_])")
_PLURAL_ACRONYM = re.compile(r"[A-ZÀ-Þ]{2,}s")
_UNIT = re.compile(r"[A-Z]{1,3}")
_AFTER_NUMBER = re.compile(r"\d[ \u00a0]?$")
_LONG_NAME = 3
_LONGEST_ACRONYM = 6
_LONGEST_SHORT_NAME = 8
_LONGEST_ABBREVIATION = 3


@dataclass(frozen=True)
class Name:
    """A run of capitalised words."""

    words: tuple[str, ...]
    """In small letters without accents; particles left out."""
    initials: str
    is_acronym: bool
    begins_sentence: bool
    """Its capital may be that of the sentence."""


def find_names(text: Text, lexicon: Lexicon) -> list[Name]:
    """The names of a text. None where most words have capitals (titles, text in capitals): they say nothing there."""
    return _find(text.raw, lexicon)


@lru_cache(maxsize=1024)
def _find(raw: str, lexicon: Lexicon) -> list[Name]:
    words = WORD.findall(raw)
    if 2 * sum(word[0].isupper() for word in words) > len(words):
        return []
    spans = (span for match in _names(lexicon).finditer(raw) for span in _apart(match))
    found = (_name(start, end, raw, lexicon) for start, end in spans)
    return [name for name in found if name.words]


def telling_names(text: Text, lexicon: Lexicon) -> list[Name]:
    """Without those that may be the first word of a sentence, or words that are often written with a capital."""
    return [name for name in find_names(text, lexicon) if _tells(name, lexicon)]


@dataclass(frozen=True)
class NameComparison:
    """The names of a source and of its rewrite."""

    num_source: int
    """Different names of the source."""
    lost: tuple[Name, ...]
    """Of these, those that the rewrite has not: in part, as acronym, or written out."""
    new: tuple[Name, ...]
    """Names of the rewrite of which the source has no word, acronym or expansion."""


def compare_names(source: Text, text: Text, lexicon: Lexicon) -> NameComparison:
    """Which names are lost and which are new."""
    asked, given = (_distinct(telling_names(one, lexicon)) for one in (source, text))
    lost, new = _absent(asked, text, lexicon), _absent(given, source, lexicon)
    lost, new = _without_written_out(lost, new, lexicon)
    new, lost = _without_written_out(new, lost, lexicon)
    if any(len(name.words) == 1 and name.words[0] not in text.folded for name in find_names(source, lexicon)):
        new = [name for name in new if not _may_write_out(name, lexicon)]
    if len(new) == 1 and not lost and _may_be_gloss(new[0], lexicon):
        new = []  # takes no other's place
    if len(lost) == 1 and not new and _may_be_gloss(lost[0], lexicon):
        lost = []  # may be no name, or have been described
    return NameComparison(len(asked), tuple(lost), tuple(new))


def _without_written_out(short: list[Name], long: list[Name], lexicon: Lexicon) -> tuple[list[Name], list[Name]]:
    """Without pairs of an institution's short and long name: of FAO and Fiocruz no letter tells what they stand for."""
    pairs = list(zip([name for name in short if len(name.words) == 1],
                     [name for name in long if _may_write_out(name, lexicon)], strict=False))
    return ([name for name in short if all(name is not one for one, _ in pairs)],
            [name for name in long if all(name is not other for _, other in pairs)])


def _may_be_gloss(name: Name, lexicon: Lexicon) -> bool:
    """A title, an institution, an acronym, the country of a city."""
    return len(name.words) == 1 or name.words in _common_names(lexicon)


def _absent(names: list[Name], text: Text, lexicon: Lexicon) -> list[Name]:
    """Those of which a text has no word, no acronym and no expansion."""
    written = [name for name in find_names(text, lexicon) if any(word not in _common(lexicon) for word in name.words)]
    return [name for name in names if not any(_is_word_of(word, text, lexicon) for word in name.words)
            and not _written_otherwise(name, written) and not _is_abbreviated(name, text)]


def _apart(match: re.Match[str]) -> list[tuple[int, int]]:
    """A run of names at its acronyms: `FAO e OMS`, `Detran SP`; none for a unit, `50 MP`."""
    if _UNIT.fullmatch(match[0]) and _AFTER_NUMBER.search(match.string[max(0, match.start() - 3):match.start()]):
        return []
    acronyms = [(match.start() + one.start(), match.start() + one.end()) for one in _ACRONYM.finditer(match[0])]
    if not acronyms:
        return [match.span()]
    bounds = [match.start(), *(place for span in acronyms for place in span), match.end()]
    return [(start, end) for start, end in pairwise(bounds) if end > start]


def _name(start: int, end: int, raw: str, lexicon: Lexicon) -> Name:
    words = [word.rstrip("s") if _PLURAL_ACRONYM.fullmatch(word) else word
             for word in WORD.findall(raw[start:end] if raw[end:end + 1] != "$" else "")  # US$
             if word.lower() not in lexicon.name_particles and not _ROMAN.fullmatch(word)
             and (len(word) <= _LONGEST_ACRONYM or not word.isupper())]  # LOCATÁRIO: stress, no name
    begins = bool(_BEGINNING.search(raw[max(0, start - 8):start]))
    if begins and words and len(words) > 1 and words[0].lower() in lexicon.function_words:
        words, begins = words[1:], False  # `Em Lisboa`
    acronym = len(words) == 1 and 1 < len(words[0]) <= _LONGEST_ACRONYM and words[0].isupper()
    return Name(tuple(fold(word) for word in words if len(word) > 1),
                "".join(fold(word)[0] for word in words), acronym, begins)


def _tells(name: Name, lexicon: Lexicon) -> bool:
    """Whether it must name something: no word at a sentence's beginning, no word that is often written so."""
    if name.begins_sentence and len(name.words) == 1 and not name.is_acronym:
        return False
    return any(word not in _common(lexicon) for word in name.words)


def _is_word_of(word: str, text: Text, lexicon: Lexicon) -> bool:
    """Whether it, a form of it, or what it is related to (Uruguai and uruguaio) is among the words."""
    if word in text.folded or (len(word) >= _SHARED_LETTERS and word[:_SHARED_LETTERS] in _beginnings(text)):
        return True
    return not (_related(lexicon).get(_base(word), frozenset()) | _related(lexicon).get(word, frozenset())).isdisjoint(
        text.folded | _bases(text))


def _is_abbreviated(name: Name, text: Text) -> bool:
    """Lc, Lucas; Sta, Santa."""
    short = name.words[0]
    return (len(name.words) == 1 and not name.is_acronym and 1 < len(short) <= _LONGEST_ABBREVIATION
            and any(word[0] == short[0] and len(word) > len(short) and _comes_in_order(short, word)
                    for word in text.folded))


def _comes_in_order(letters: str, text: str) -> bool:
    rest = iter(text)
    return all(letter in rest for letter in letters)


@lru_cache(maxsize=512)
def _bases(text: Text) -> frozenset[str]:
    return frozenset(map(_base, text.folded))


@lru_cache(maxsize=512)
def _beginnings(text: Text) -> frozenset[str]:
    return frozenset(word[:_SHARED_LETTERS] for word in text.folded)


def _base(word: str) -> str:
    """Carioca, cariocas; mineiro, mineira, mineiros."""
    return word if len(word) < _SHARED_LETTERS else word.rstrip("s").rstrip("ao")


def _written_otherwise(name: Name, others: list[Name]) -> bool:
    """An acronym whose letters begin the words of another name, or the other way round."""
    return any(_is_short_for(name, other) or _is_short_for(other, name) for other in others)


def _is_short_for(short: Name, name: Name) -> bool:
    if len(short.words) != 1 or len(name.words) < 2 or len(short.words[0]) > _LONGEST_SHORT_NAME:
        return False
    return (short.words[0] == name.initials or _abbreviates(short.words[0], name)
            or _is_blend(short.words[0], name.words))


def _is_blend(letters: str, words: tuple[str, ...]) -> bool:
    """Whether beginnings of the words, one after the other, make up the letters: CadÚnico, Cadastro Único."""
    if not letters or not words:
        return not letters
    return any(_is_blend(letters[length:], words[1:]) for length in range(1, len(letters) + 1)
               if words[0].startswith(letters[:length]))


def _abbreviates(letters: str, name: Name) -> bool:
    """Whether the letters come in this order at the beginnings of the words: INPE, Instituto Nacional de Pesquisas."""
    return letters[0] == name.initials[:1] and _comes_in_order(letters, "".join(word[:4] for word in name.words))


def _may_write_out(name: Name, lexicon: Lexicon) -> bool:
    return len(name.words) >= _LONG_NAME or (
        len(name.words) >= 2 and name.words[0] in _institution_words(lexicon))


def _distinct(names: list[Name]) -> list[Name]:
    return list({name.words: name for name in names}.values())


@cache
def _names(lexicon: Lexicon) -> re.Pattern[str]:
    particles = "|".join(lexicon.name_particles.exact)
    return re.compile(rf"(?<![\w'’]){_NAME_WORD}(?:(?:[ \t]|-)(?:(?:{particles})[ \t](?:a[ \t])?)*{_NAME_WORD})*")


@cache
def _common(lexicon: Lexicon) -> frozenset[str]:
    return frozenset(fold(word) for word in lexicon.common_capitals.exact | lexicon.function_words.exact)


@cache
def _common_names(lexicon: Lexicon) -> frozenset[tuple[str, ...]]:
    return frozenset(tuple(fold(word) for word in name.split() if word not in lexicon.name_particles)
                     for name in lexicon.common_names)


@cache
def _institution_words(lexicon: Lexicon) -> frozenset[str]:
    return frozenset(fold(word) for word in lexicon.institutions.exact)


@cache
def _related(lexicon: Lexicon) -> dict[str, frozenset[str]]:
    """Both ways: carioca -> rio, janeiro; rio -> carioca, fluminense, …"""
    related: dict[str, set[str]] = {}
    for word, names in lexicon.related_names.items():
        base = _base(fold(word))
        related.setdefault(base, set()).update(map(fold, names))
        for name in names:
            related.setdefault(fold(name), set()).add(base)
    return {word: frozenset(others) for word, others in related.items()}
