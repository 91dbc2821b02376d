"""What is measured on a rewrite beside its source: plain numbers, each with one meaning."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

COPY_NGRAM = 5
REPEAT_NGRAM = 4
_WORD = re.compile(r"[^\W\d_]+")
_NUMBER = re.compile(r"\d{1,3}(?:[.\s]\d{3})+(?!\d)(?:,\d+)?|\d+(?:[.,]\d+)*")
_QA_PAIR = re.compile(r"^\W*Pergunta\W*?:\W*?(\w.*?)\n+\W*Resposta\W*?:\W*?(\w.*?)$", re.IGNORECASE | re.MULTILINE)
_NAME_WORD = r"[A-ZÀ-ÖØ-Þ][^\W\d_]+"
_NAME = re.compile(rf"(?:(?<=[\w,;] )|(?<=\()){_NAME_WORD}(?:[ -](?:d[aeo]s? |e )?{_NAME_WORD})*")
_MIN_UNKNOWN_LETTERS = 3
_LANGUAGES = ("PORTUGUESE", "SPANISH", "CATALAN", "ITALIAN", "FRENCH", "ENGLISH", "GERMAN")


@dataclass(frozen=True)
class Measures:
    """Numbers about one rewrite (after its preamble was stripped)."""

    length_ratio: float
    """Tokens of the rewrite / tokens of the source."""
    copied_fraction: float
    """Share of the rewrite's 5-grams of words that stand in the source."""
    repeated_fraction: float
    """Share of the rewrite's 4-grams of words that stood in it before."""
    portuguese_confidence: float
    """Probability of Portuguese among seven languages, by lingua."""
    language: str
    """The likeliest of the seven, ISO 639-1; empty for a text without letters."""
    unknown_word_fraction: float
    """Share of the rewrite's distinct words that neither the source nor the Portuguese word list has."""
    number_retention: float
    """Share of the source's distinct numbers that the rewrite has; 1 for a source without numbers."""
    entity_retention: float
    """Share of the source's named entities that the rewrite has; 1 for a source without any that can be told."""
    num_qa_pairs: int
    """Pairs of lines `Pergunta: …` and `Resposta: …`."""


def measure(source: str, text: str, length_ratio: float) -> Measures:
    """Measure a rewrite; `length_ratio` comes from whoever counts tokens."""
    source_words, words = words_of(source), words_of(text)
    confidences = language_confidences(text)
    return Measures(
        length_ratio=length_ratio,
        copied_fraction=copied_fraction(source_words, words),
        repeated_fraction=repeated_fraction(words),
        portuguese_confidence=confidences.get("pt", 0.0),
        language=max(confidences, key=lambda code: (confidences[code], code), default=""),
        unknown_word_fraction=unknown_word_fraction(source_words, words),
        number_retention=number_retention(source, text),
        entity_retention=entity_retention(source, words),
        num_qa_pairs=len(_QA_PAIR.findall(text)),
    )


def words_of(text: str) -> list[str]:
    """Runs of letters, in small letters."""
    return _WORD.findall(text.lower())


def copied_fraction(source_words: Sequence[str], words: Sequence[str]) -> float:
    """Share of the n-grams of `words` that stand in `source_words`."""
    n = min(COPY_NGRAM, max(1, len(words)))  # a rewrite of three words can be a copy too
    ngrams = _ngrams(words, n)
    known = set(_ngrams(source_words, n))
    return sum(ngram in known for ngram in ngrams) / len(ngrams) if ngrams else 0.0


def repeated_fraction(words: Sequence[str]) -> float:
    """Share of the n-grams of `words` that are not new; 0 when no n-gram occurs twice."""
    ngrams = _ngrams(words, REPEAT_NGRAM)
    return 1 - len(Counter(ngrams)) / len(ngrams) if ngrams else 0.0


def language_confidences(text: str) -> dict[str, float]:
    """ISO 639-1 code -> probability that the text is in Portuguese, one of its neighbours, or a large language."""
    if not _WORD.search(text):
        return {}
    values = _detector().compute_language_confidence_values(text)
    # lingua sums in random order: its last digits differ from call to call
    return {one.language.iso_code_639_1.name.lower(): round(one.value, 3) for one in values}


def unknown_word_fraction(source_words: Sequence[str], words: Sequence[str]) -> float:
    """Share of the distinct words (of three letters and more) that exist neither in the source nor in Portuguese.

    Portuguese is what wordfreq's large list holds: 268,000 forms seen at least once in 10^8 words of subtitles, news,
    books, Wikipedia and the web, collected before language models wrote there. On Portuguese prose the median is 0.
    """
    distinct = {word for word in words if len(word) >= _MIN_UNKNOWN_LETTERS}
    unknown = distinct - set(source_words) - _portuguese_words()
    return len(unknown) / len(distinct) if distinct else 0.0


def number_retention(source: str, text: str) -> float:
    """Share of the distinct numbers of the source that the text has, however their thousands are grouped."""
    numbers = _numbers(source)
    return len(numbers & _numbers(text)) / len(numbers) if numbers else 1.0


def entity_retention(source: str, words: Sequence[str]) -> float:
    """Share of the named entities of the source whose capitalised words are all among `words` (of words_of)."""
    entities = named_entities(source)
    known = set(words)
    return sum(entity <= known for entity in entities) / len(entities) if entities else 1.0


def named_entities(text: str) -> set[frozenset[str]]:
    """Names in a text: runs of capitalised words inside a sentence, as sets of their words in small letters.

    The first word of a sentence says nothing. Nor do capitals where most words have them: titles, text in capitals.
    """
    found = _WORD.findall(text)
    if 2 * sum(word[0].isupper() for word in found) > len(found):
        return set()
    return {frozenset(word.lower() for word in _WORD.findall(name) if word[0].isupper())
            for name in _NAME.findall(text)}


def _numbers(text: str) -> set[str]:
    return {re.sub(r"\D", "", match).lstrip("0") or "0" for match in _NUMBER.findall(text)}


def _ngrams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(words[start:start + n]) for start in range(len(words) - n + 1)]


@cache
def _portuguese_words() -> frozenset[str]:
    from wordfreq import get_frequency_dict

    # The list keeps "guarda-chuva" as one entry; words_of splits at hyphens.
    return frozenset(part for entry in get_frequency_dict("pt", wordlist="large") for part in _WORD.findall(entry))


@cache
def _detector():  # noqa: ANN202 (lingua is imported only where rewrites are measured)
    from lingua import Language, LanguageDetectorBuilder

    return LanguageDetectorBuilder.from_languages(*(getattr(Language, name) for name in _LANGUAGES)).build()
