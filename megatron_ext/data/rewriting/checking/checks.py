"""Output checks: every reason against keeping a rewrite, by name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from megatron_ext.data.rewriting.checking import form
from megatron_ext.data.rewriting.checking.lexicon import Lexicon, load_lexicon
from megatron_ext.data.rewriting.checking.measures import Measures, measure
from megatron_ext.data.rewriting.checking.qa import NO_PAIRS, QaText, read_qa
from megatron_ext.data.rewriting.checking.text import Text, source_text
from megatron_ext.data.rewriting.checking.wrapping import strip_wrapping
from megatron_ext.data.rewriting.packs import DEFAULT_LANGUAGE, THRESHOLDS_FILE, pack_file
from megatron_ext.errors import UserError
from megatron_ext.settings import Settings, read_layers, validate

_COMPLETE = "stop"
_FEW_WORDS = 12
"""A source of so many may be shortened to any length."""
_FEW_CONTENT_WORDS = 5
"""A headline in other words may share none with its source."""


class Thresholds(Settings):
    """What a rewrite must meet; the reason that a failure is counted under stands in brackets."""

    min_length_ratio: float = Field(ge=0)
    """Tokens of the rewrite / tokens of the source, at least [too_short]."""
    max_length_ratio: float = Field(gt=0)
    """The same, at most [too_long]."""
    length_slack_words: int = Field(ge=0)
    """Rewrites of so many words are never too long."""
    max_copied_fraction: float = Field(ge=0, le=1)
    """Share of the rewrite's 5-grams of words that stand in the source [copied_source]."""
    max_copied_sentences: float = Field(ge=0, le=1)
    """Share of its words in sentences copied but for a word or two [copied_source]."""
    max_kept_order: float = Field(ge=0, le=1)
    """Longest common subsequence of words / words [copied_source]."""
    max_repeated_fraction: float = Field(ge=0, le=1)
    """Share of its 4-grams of words that stood in it before [repetition]."""
    max_repeated_sentences: int = Field(ge=0)
    """Sentences said again [repetition]."""
    max_foreign_fraction: float = Field(ge=0, le=1)
    """Share of its words in sentences of another language [other_language]; letters of another script always are."""
    max_unknown_words: int = Field(ge=0)
    """Distinct words that neither the source nor the language has [unknown_words]."""
    max_unknown_fraction: float = Field(ge=0, le=1)
    """The same as a share of the words: only what is above both is counted [unknown_words]."""
    min_shared_fraction: float = Field(ge=0, le=1)
    """Share of its content words that the source has [other_subject]."""
    min_number_retention: float = Field(ge=0, le=1)
    """Share of the source's numbers that it has [numbers_lost]."""
    max_new_numbers: int = Field(ge=0)
    """Numbers that the source has not [numbers_new]."""
    min_name_retention: float = Field(ge=0, le=1)
    """Share of the source's names that it has [names_lost]."""
    max_new_names: int = Field(ge=0)
    """Names that the source has not [names_new]."""
    check_polarity: bool
    """Negation that appeared or vanished [negation], directions that turned [direction], numbers and names in
    each other's places, numbers with other units or directions [swapped]."""
    min_qa_pairs: int = Field(ge=0)
    """Question and answer pairs, at least; above 0 nothing but pairs may stand there [wrong_qa_format]."""


@dataclass(frozen=True)
class Verdict:
    """The outcome of the checks on one completion."""

    text: str
    """Without preamble, closing words and wrapping."""
    reasons: tuple[str, ...]
    """Why it is not kept; empty: it is kept."""
    measures: Measures | None
    """None for an empty text."""


NO_ANSWER = Verdict("", ("request_failed",), None)
"""The verdict on a request that got no answer."""


def load_thresholds(styles: list[str], file: Path | None = None,
                    language: str = DEFAULT_LANGUAGE) -> dict[str, Thresholds]:
    """Thresholds by style from a YAML file (default: the language's own). Raises UserError that lists all mistakes."""
    file = file or pack_file(language, THRESHOLDS_FILE)
    values = read_layers(file)
    if not isinstance(values.get("default"), dict):
        raise UserError(f"{file}: needs a section `default`")
    return {style: validate(Thresholds, values["default"] | (values.get(style) or {}), where=f"{file}, {style}")
            for style in styles}


def check(source: str, output: str, *, finish_reason: str, length_ratio: float, thresholds: Thresholds,
          lexicon: Lexicon | None = None) -> Verdict:
    """Judge what the rewriter wrote for a source.

    `length_ratio`: tokens of `strip_wrapping(output, source, lexicon)` / tokens of the source.
    """
    lexicon = lexicon or load_lexicon()
    text = strip_wrapping(output, source, lexicon)
    unfinished = () if finish_reason == _COMPLETE else (
        "cut_by_max_tokens" if finish_reason == "length" else "not_finished",)
    if not any(character.isalnum() for character in text):
        return Verdict(text, ("empty", *unfinished), None)
    there, here = source_text(source, lexicon), Text(text, lexicon)
    pairs = read_qa(text, lexicon) if thresholds.min_qa_pairs else NO_PAIRS
    measures = measure(there, Text(pairs.content, lexicon) if pairs.pairs else here, length_ratio, pairs, lexicon)
    faults = (_faults_of_form(there, here, measures, pairs, thresholds, lexicon)
              | _faults_of_meaning(there, here, measures, thresholds))
    return Verdict(text, (*unfinished, *(reason for reason, holds in faults.items() if holds)), measures)


def _faults_of_form(source: Text, text: Text, measures: Measures, pairs: QaText, limits: Thresholds,
                    lexicon: Lexicon) -> dict[str, bool]:
    num_words = len(text.words)
    qa = pairs if limits.min_qa_pairs else None
    return {
        "refusal": form.is_refusal(source, text, lexicon),
        "meta_text": form.has_leftovers(source, text, lexicon),
        "markdown": qa is None and bool(form.new_markdown(source, text)),
        "cut_off": form.is_cut(source, text, lexicon, qa),
        "too_short": (measures.length_ratio < limits.min_length_ratio
                      and len(source.words) > _FEW_WORDS),
        "too_long": measures.length_ratio > limits.max_length_ratio and num_words > limits.length_slack_words,
        "copied_source": (measures.copied_fraction > limits.max_copied_fraction
                          or measures.copied_sentences > limits.max_copied_sentences
                          or measures.kept_order > limits.max_kept_order),
        "repetition": (measures.repeated_fraction > limits.max_repeated_fraction
                       or measures.repeated_sentences > limits.max_repeated_sentences),
        "other_language": measures.foreign_fraction > limits.max_foreign_fraction or measures.foreign_letters > 0,
        "unknown_words": (measures.unknown_words > limits.max_unknown_words
                          and measures.unknown_words > limits.max_unknown_fraction * len(text.word_set)),
        "wrong_qa_format": qa is not None and (measures.num_qa_pairs < limits.min_qa_pairs
                                               or measures.num_qa_faults > 0),
    }


def _faults_of_meaning(source: Text, text: Text, measures: Measures, limits: Thresholds) -> dict[str, bool]:
    return {
        "other_subject": (measures.shared_fraction < limits.min_shared_fraction
                          and len(text.stems) > _FEW_CONTENT_WORDS),
        "numbers_lost": measures.number_retention < limits.min_number_retention,
        "numbers_new": measures.numbers_new > limits.max_new_numbers,
        "swapped": limits.check_polarity and measures.swapped,
        "names_lost": measures.name_retention < limits.min_name_retention,
        "names_new": measures.names_new > limits.max_new_names,
        "negation": limits.check_polarity and (measures.negation_appeared or measures.negation_vanished),
        "direction": limits.check_polarity and measures.direction_turned,
    }
