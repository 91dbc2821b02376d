"""How much of a rewrite is the source's wording, and how much of it is said twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from megatron_ext.data.rewriting.checking.text import Sentence, Text

COPY_NGRAM = 5
REPEAT_NGRAM = 4
_MIN_SENTENCE_WORDS = 3
_MIN_COPIED_WORDS = 14
_NEAR_COPY = 0.85


def copied_fraction(source_words: Sequence[str], words: Sequence[str]) -> float:
    """Share of the n-grams of `words` that stand in `source_words`."""
    n = min(COPY_NGRAM, max(1, len(words)))  # a rewrite of three words can be a copy too
    ngrams = _ngrams(words, n)
    known = set(_ngrams(source_words, n))
    return sum(ngram in known for ngram in ngrams) / len(ngrams) if ngrams else 0.0


def kept_order_fraction(source_words: Sequence[str], words: Sequence[str]) -> float:
    """Longest common subsequence of words / words of the rewrite: near 1 for a copy in which single words were changed.

    By bits (Hyyrö 2004): one addition of long integers a word.
    """
    places: dict[str, int] = {}
    for place, word in enumerate(source_words):
        places[word] = places.get(word, 0) | 1 << place
    every = (1 << len(source_words)) - 1
    row = every
    for word in words:
        matches = row & places.get(word, 0)
        row = (row + matches | row - matches) & every
    return (len(source_words) - row.bit_count()) / len(words) if words else 0.0


def copied_sentences_fraction(source: Text, text: Text) -> float:
    """Share of the words that stand in (long) sentences which are one of the source's, but for a word or two."""
    copied = sum(len(sentence.words) for sentence in text.sentences if len(sentence.words) >= _MIN_COPIED_WORDS and any(
        _is_near_copy(original, sentence) for original in source.sentences))
    return copied / max(1, len(text.words))


def repeated_fraction(words: Sequence[str]) -> float:
    """Share of the n-grams of `words` that are not new; 0 when no n-gram occurs twice."""
    ngrams = _ngrams(words, REPEAT_NGRAM)
    return 1 - len(Counter(ngrams)) / len(ngrams) if ngrams else 0.0


def repeated_sentences(source: Text, text: Text) -> int:
    """Sentences of three words and more that stand there again, more often than in the source."""
    def counts(one: Text) -> Counter[tuple[str, ...]]:
        return Counter(tuple(sentence.words) for sentence in one.sentences
                       if len(sentence.words) >= _MIN_SENTENCE_WORDS)

    allowed = counts(source)
    return sum(max(0, count - max(1, allowed[words])) for words, count in counts(text).items())


def _is_near_copy(original: Sentence, sentence: Sentence) -> bool:
    if len(sentence.stems & original.stems) < _NEAR_COPY * len(sentence.stems) - 1:
        return False  # cheap to see
    return kept_order_fraction(original.words, sentence.words) >= _NEAR_COPY


def _ngrams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return list(zip(*(words[start:] for start in range(n)), strict=False)) if n else []
