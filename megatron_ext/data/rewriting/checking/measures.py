"""What is measured on a rewrite beside its source: plain numbers, each with one meaning."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_ext.data.rewriting.checking import copies, exchanges, language, names, placing, polarity, qa, quantities
from megatron_ext.data.rewriting.checking.lexicon import Lexicon
from megatron_ext.data.rewriting.checking.qa import QaText
from megatron_ext.data.rewriting.checking.text import Text


@dataclass(frozen=True)
class Measures:
    """Numbers about one rewrite (after its wrapping was stripped)."""

    length_ratio: float
    """Tokens of the rewrite / tokens of the source."""
    copied_fraction: float
    """Share of the rewrite's 5-grams of words that stand in the source."""
    copied_sentences: float
    """Share of its words in long sentences that are one of the source's but for a word or two."""
    kept_order: float
    """Words of the longest common subsequence / words of the rewrite."""
    repeated_fraction: float
    """Share of the rewrite's 4-grams of words that stood in it before."""
    repeated_sentences: int
    """Sentences that it says again, more often than the source does."""
    foreign_fraction: float
    """Share of its words in sentences of another language."""
    language: str
    """The language of most of these, ISO 639-1; without any, the language that was asked for."""
    foreign_letters: int
    """Letters of scripts that the source does not use."""
    unknown_words: int
    """Distinct words that neither the source nor the language has."""
    shared_fraction: float
    """Share of the rewrite's content words (by stem) that the source has."""
    num_source_numbers: int
    """Different numbers of the source."""
    numbers_lost: int
    """Of these, how many the rewrite has in no form."""
    number_retention: float
    """Share of the source's numbers that the rewrite has; 1 for a source without numbers."""
    numbers_new: int
    """Numbers of the rewrite that the source has in no form."""
    swapped: bool
    """Whether numbers or names of the source stand in each other's places, or numbers other units or directions."""
    num_source_names: int
    """Different names and acronyms of the source, as far as capitals tell."""
    names_lost: int
    """Of these, how many the rewrite has not, in part, abbreviated or written out."""
    name_retention: float
    """Share of the source's names that the rewrite has; 1 for a source without names."""
    names_new: int
    """Names and acronyms of the rewrite of which the source has nothing."""
    negation_appeared: bool
    """Whether it denies what the source states."""
    negation_vanished: bool
    """Whether it states what the source denies."""
    direction_turned: bool
    """Whether it says down for up, lack for excess, and the like."""
    num_qa_pairs: int
    """Questions with an answer."""
    num_qa_faults: int
    """Questions without answer and the reverse, answers that say they have none, pairs about a text instead of what
    it says, and text outside pairs.
    """


def measure(source: Text, text: Text, length_ratio: float, pairs: QaText, lexicon: Lexicon) -> Measures:
    """Measure a rewrite; `length_ratio` comes from whoever counts tokens, `pairs` from whoever expects some."""
    foreign_fraction, other = language.foreign_words(source, text, lexicon)
    found = names.compare_names(source, text, lexicon)
    there, here = (quantities.read_quantities(one.raw, lexicon) for one in (source, text))
    lost_numbers, new_numbers = quantities.compare(there, here)
    num_numbers, num_lost = quantities.num_distinct(there), len(lost_numbers)
    return Measures(
        length_ratio=length_ratio,
        copied_fraction=copies.copied_fraction(source.words, text.words),
        copied_sentences=copies.copied_sentences_fraction(source, text),
        kept_order=copies.kept_order_fraction(source.words, text.words),
        repeated_fraction=copies.repeated_fraction(text.words),
        repeated_sentences=copies.repeated_sentences(source, text),
        foreign_fraction=foreign_fraction, language=other or lexicon.language,
        foreign_letters=language.foreign_scripts(source, text),
        unknown_words=len(language.unknown_words(source, text, lexicon)),
        shared_fraction=len(text.stems & source.stems) / max(1, len(text.stems)),
        num_source_numbers=num_numbers, numbers_lost=num_lost, number_retention=_share_kept(num_lost, num_numbers),
        numbers_new=len(new_numbers),
        swapped=(exchanges.has_mismatch(there, here)
                 or placing.has_swapped(source, text, (there, here), lexicon)),
        num_source_names=found.num_source, names_lost=len(found.lost),
        name_retention=_share_kept(len(found.lost), found.num_source),
        names_new=len(found.new),
        negation_appeared=polarity.negation_appeared(source, text, lexicon),
        negation_vanished=polarity.negation_vanished(source, text, lexicon),
        direction_turned=polarity.direction_turned(source, text, lexicon),
        num_qa_pairs=len(pairs.pairs),
        num_qa_faults=(pairs.num_broken + qa.unanswered(pairs, lexicon) + qa.about_the_text(pairs, source, lexicon)
                       + bool(pairs.outside)),
    )


def _share_kept(num_lost: int, num_all: int) -> float:
    return 1 - num_lost / num_all if num_all else 1.0
