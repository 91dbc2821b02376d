"""Is every sentence in the language that was asked for? By how frequent its words are there and elsewhere."""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from functools import cache, lru_cache

from megatron_ext.data.rewriting.checking.lexicon import Lexicon
from megatron_ext.data.rewriting.checking.text import WORD, Text

_UNSEEN = 1e-8
"""Frequency of a word that a list does not have; the rarest that it has stand near 1e-6."""
_WHOLE_TEXT, _SENTENCE = 0.5, 5.0
"""Evidence against the language from which a text, or a sentence of one, is foreign; own ones are mostly above +5."""
_MIN_STEM = 5
_NOT_LATIN = re.compile(r"[^\x00-\u024f]")
_LATIN = ("LATIN", "FEMININE", "MASCULINE", "MODIFIER")
_MAX_EVIDENCE = 2.5
"""Powers of ten by which one word speaks for a language at most."""


def foreign_words(source: Text, text: Text, lexicon: Lexicon) -> tuple[float, str]:
    """(share of the words that stand in sentences of another language, that language; empty: none).

    Words that the source has speak for no language: names, terms, quotations.
    """
    telling = [[word for word in sentence.words if word not in source.word_set] for sentence in text.sentences]
    bounds = [sum(_least(word, lexicon) for word in words) for words in telling]
    if sum(bounds) >= -_WHOLE_TEXT and min(bounds, default=0.0) >= -_SENTENCE:
        return 0.0, ""  # what speaks against the language most, word by word, is not enough
    evidence = [_total(words, lexicon) for words in telling]
    least, other = _likeliest([sum(column) for column in zip(*evidence, strict=True)], lexicon)
    if least < -_WHOLE_TEXT:
        return 1.0, other
    num_foreign: dict[str, int] = {}
    for sentence, columns in zip(text.sentences, evidence, strict=True):
        least, other = _likeliest(columns, lexicon)
        if least < -_SENTENCE:
            num_foreign[other] = num_foreign.get(other, 0) + len(sentence.words)
    language = max(num_foreign, key=lambda code: (num_foreign[code], code), default="")
    return sum(num_foreign.values()) / max(1, len(text.words)), language


def _likeliest(evidence: list[float], lexicon: Lexicon) -> tuple[float, str]:
    """(the evidence against the likeliest other language, that language)."""
    return min(zip(evidence, lexicon.other_languages, strict=True), default=(0.0, ""))


def _total(words: list[str], lexicon: Lexicon) -> list[float]:
    """By other language: powers of ten by which the words speak for the language against it."""
    rows = [_evidence(word, lexicon) for word in words]
    return [sum(column) for column in zip(*rows, strict=True)] if rows else [0.0] * len(lexicon.other_languages)


def foreign_scripts(source: Text, text: Text) -> int:
    """Letters of a script (Han, Cyrillic, Arabic, …) of which the source has none."""
    found = _scripts(text.raw)
    return (found - Counter({script: found[script] for script in _scripts(source.raw)})).total() if found else 0


def unknown_words(source: Text, text: Text, lexicon: Lexicon) -> list[str]:
    """Distinct words, names left out, that neither the source nor the language has, nor are formed of words it has.

    The language is what wordfreq's large list holds: forms seen at least once in 10^8 words of subtitles, news, books,
    Wikipedia and the web, collected before language models wrote there.
    """
    small = {word for word in WORD.findall(text.raw) if word.islower() and len(word) >= 4}
    unknown = small - source.word_set - _all_words(lexicon.language)
    return sorted(word for word in unknown if not _is_formed(word, lexicon))


@lru_cache(maxsize=2**16)
def _is_formed(word: str, lexicon: Lexicon) -> bool:
    """A known word with another ending or a beginning before it: rare forms are no mistakes."""
    known = _all_words(lexicon.language)
    endings, beginnings = lexicon.word_endings.exact, lexicon.word_beginnings.exact
    stems = [word[:-cut] for cut in range(1, len(word) - _MIN_STEM + 1) if word[-cut:] in endings]
    return any(one + ending in known for one in stems for ending in endings) or any(
        word[cut:] in known for cut in range(1, len(word) - _MIN_STEM + 1) if word[:cut] in beginnings)


@lru_cache(maxsize=2**18)
def _evidence(word: str, lexicon: Lexicon) -> tuple[float, ...]:
    own = _frequencies(lexicon.language).get(word, _UNSEEN)
    ratios = (math.log10(own / _frequencies(other).get(word, _UNSEEN)) for other in lexicon.other_languages)
    return tuple(max(-_MAX_EVIDENCE, min(_MAX_EVIDENCE, ratio)) for ratio in ratios)


@lru_cache(maxsize=2**18)
def _least(word: str, lexicon: Lexicon) -> float:
    return min(_evidence(word, lexicon))


def _scripts(text: str) -> Counter[str]:
    names = (unicodedata.name(letter, "?").split()[0] for letter in _NOT_LATIN.findall(text) if letter.isalpha())
    return Counter(name for name in names if name not in _LATIN)


@cache
def _frequencies(language: str) -> dict[str, float]:
    from wordfreq import get_frequency_dict

    return get_frequency_dict(language, wordlist="small")


@cache
def _all_words(language: str) -> frozenset[str]:
    from wordfreq import get_frequency_dict

    # The list keeps "guarda-chuva" as one entry; words are split at hyphens here.
    return frozenset(part for entry in get_frequency_dict(language, wordlist="large") for part in WORD.findall(entry))
