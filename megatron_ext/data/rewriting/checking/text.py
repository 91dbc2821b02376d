"""A text taken apart once, for all checks: sentences, words, stems."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from functools import cache, cached_property, lru_cache

from megatron_ext.data.rewriting.checking.lexicon import Lexicon
from megatron_ext.data.rewriting.packs import sentence_splitter

WORD = re.compile(r"[^\W\d_]+")
_LINE_END = re.compile(r"\s*\n\s*")
_STEM_LETTERS = 5
_SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")
_MANY_WORDS = 2**18


class Sentence:
    """A sentence or, where there are lines, what of it stands on one."""

    def __init__(self, text: str, lexicon: Lexicon) -> None:
        self.text = text
        self.words = words_of(text)
        self._lexicon = lexicon

    @cached_property
    def stems(self) -> frozenset[str]:
        """Of its content words."""
        return content_stems(self.words, self._lexicon)


class Clause(Sentence):
    """A part of a sentence between punctuation marks and conjunctions."""

    def __init__(self, text: str, words_around: Sequence[str], asks: bool, lexicon: Lexicon) -> None:
        super().__init__(text, lexicon)
        self.asks = asks
        """Whether its sentence is a question."""
        self.words_around = words_around
        """Words of its sentence, and of the question that it answers."""


class Text:
    """A source or a rewrite."""

    def __init__(self, raw: str, lexicon: Lexicon) -> None:
        self.raw = raw.translate(_SUBSCRIPTS)
        self._lexicon = lexicon

    @cached_property
    def sentences(self) -> list[Sentence]:
        """By Punkt (Kiss and Strunk 2006); a line's end is an end, too."""
        pieces = [line[start:end] for line in _LINE_END.split(self.raw) if line
                  for start, end in sentence_splitter(self._lexicon.punkt).span_tokenize(line)]
        return [Sentence(piece, self._lexicon) for piece in pieces]

    @cached_property
    def clauses(self) -> list[Clause]:
        """The sentences at their punctuation marks and conjunctions."""
        clauses: list[Clause] = []
        question: Sequence[str] = ()
        for sentence in self.sentences:
            around = [*question, *sentence.words]  # what an answer leaves out stands in its question
            asks = sentence.text.endswith("?")
            clauses += [Clause(part, around, asks, self._lexicon)
                        for part in filter(None, self._lexicon.clause_ends.split(sentence.text))]
            question = sentence.words if asks else ()
        return clauses

    @cached_property
    def words(self) -> list[str]:
        """Runs of letters, in small letters."""
        return words_of(self.raw)

    @cached_property
    def word_set(self) -> frozenset[str]:
        """Distinct words."""
        return frozenset(self.words)

    @cached_property
    def stems(self) -> frozenset[str]:
        """Of all content words."""
        return content_stems(self.word_set, self._lexicon)

    @cached_property
    def familiar(self) -> frozenset[str]:
        """Its words and the stems of its content words."""
        return self.word_set | self.stems

    @cached_property
    def folded(self) -> frozenset[str]:
        """Its words without accents."""
        return frozenset(map(fold, self.word_set))


@lru_cache(maxsize=256)
def source_text(raw: str, lexicon: Lexicon) -> Text:
    """The source of several rewrites is taken apart once."""
    return Text(raw, lexicon)


class _ContentStems(dict[str, str]):
    """Word -> stem; empty for a function word."""

    def __init__(self, lexicon: Lexicon) -> None:
        super().__init__()
        self._function_words = lexicon.function_words

    def __missing__(self, word: str) -> str:
        found = self[word] = "" if word in self._function_words else stem(word)
        return found


@cache
def _content_stems(lexicon: Lexicon) -> _ContentStems:
    return _ContentStems(lexicon)


def content_stems(words: Iterable[str], lexicon: Lexicon) -> frozenset[str]:
    """Stems of the words that are no function words."""
    return frozenset(map(_content_stems(lexicon).__getitem__, words)) - {""}


def words_of(text: str) -> list[str]:
    """Runs of letters, in small letters."""
    return WORD.findall(text.lower())


@lru_cache(maxsize=_MANY_WORDS)
def fold(word: str) -> str:
    """A word without accents, in small letters."""
    decomposed = unicodedata.normalize("NFD", word.lower())
    return "".join(letter for letter in decomposed if not unicodedata.combining(letter))


@lru_cache(maxsize=_MANY_WORDS)
def stem(word: str) -> str:
    """What forms of a word begin with: its first five letters without accents, fewer of a short word's ending."""
    letters = fold(word)
    if len(letters) > _STEM_LETTERS:
        return letters[:_STEM_LETTERS]
    return letters.rstrip("s").rstrip("aoe") or letters
