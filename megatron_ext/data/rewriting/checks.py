"""Output checks: every reason against keeping a rewrite, by name."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from megatron_ext.data.rewriting.measures import Measures, measure
from megatron_ext.data.rewriting.wrapping import strip_wrapping
from megatron_ext.errors import UserError
from megatron_ext.settings import Settings, read_layers, validate

THRESHOLDS_FILE = Path(__file__).with_name("thresholds.yaml")

_REFUSAL = re.compile(
    r"\b(?:não (?:posso|consigo|sou capaz de) (?:ajudar|reescrever|atender|responder|realizar|cumprir|fornecer|gerar)"
    r"|(?:sinto muito|desculpe|lamento),? (?:mas )?(?:eu )?não"
    r"|I(?:'m| am) (?:sorry|unable|not able)|I can(?:'t|not) (?:help|assist|rewrite|fulfill|provide))", re.IGNORECASE)
_META_TEXT = re.compile(
    r"</?texto?>|<\|[^|>]{1,30}\|>|\[/?INST\]"
    r"|\b(?:como (?:um )?modelo de linguagem|como uma? (?:assistente|IA|inteligência artificial)\b|as an AI\b"
    r"|(?:o |do |no |neste |este )?texto (?:original|reescrito|fornecido|acima|abaixo|a ser reescrito)"
    r"|reescrev(?:a|i|endo) o texto|versão (?:reescrita|simplificada) do texto|responda apenas)", re.IGNORECASE)


class Thresholds(Settings):
    """What a rewrite must meet; the reason that a failure is counted under stands in brackets."""

    min_length_ratio: float = Field(ge=0)
    """Tokens of the rewrite / tokens of the source, at least [too_short]."""
    max_length_ratio: float = Field(gt=0)
    """The same, at most [too_long]."""
    max_copied_fraction: float = Field(ge=0, le=1)
    """Share of the rewrite's 5-grams of words that stand in the source [copied_source]."""
    max_repeated_fraction: float = Field(ge=0, le=1)
    """Share of its 4-grams of words that stood in it before [repetition]."""
    min_portuguese_confidence: float = Field(ge=0, le=1)
    """Probability of Portuguese by lingua, at least [not_portuguese]."""
    max_unknown_word_fraction: float = Field(ge=0, le=1)
    """Share of distinct words that neither the source nor a list of Portuguese words has [unknown_words]."""
    min_number_retention: float = Field(ge=0, le=1)
    """Share of the source's distinct numbers that the rewrite has, at least [numbers_lost]."""
    min_entity_retention: float = Field(ge=0, le=1)
    """Share of the source's named entities that the rewrite has, at least [entities_lost]."""
    min_qa_pairs: int = Field(ge=0)
    """Question and answer pairs, at least [wrong_qa_format]."""


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


def load_thresholds(styles: list[str], file: Path | None = None) -> dict[str, Thresholds]:
    """Thresholds by style from a YAML file (default: the built-in one). Raises UserError that lists all mistakes."""
    file = file or THRESHOLDS_FILE
    values = read_layers(file)
    if not isinstance(values.get("default"), dict):
        raise UserError(f"{file}: needs a section `default`")
    return {style: validate(Thresholds, values["default"] | (values.get(style) or {}), where=f"{file}, {style}")
            for style in styles}


def check(source: str, output: str, *, finish_reason: str, length_ratio: float,
          thresholds: Thresholds) -> Verdict:
    """Judge what the rewriter wrote for a source.

    `length_ratio`: tokens of `strip_wrapping(output)` / tokens of the source.
    """
    text = strip_wrapping(output)
    if not any(character.isalnum() for character in text):
        return Verdict(text, ("empty",), None)
    measures = measure(source, text, length_ratio)
    reasons = {
        "cut_by_max_tokens": finish_reason == "length",
        "refusal": bool(_REFUSAL.search(text)) and not _REFUSAL.search(source),
        "meta_text": bool(_META_TEXT.search(text)) and not _META_TEXT.search(source),
        "too_short": length_ratio < thresholds.min_length_ratio,
        "too_long": length_ratio > thresholds.max_length_ratio,
        "copied_source": measures.copied_fraction > thresholds.max_copied_fraction,
        "repetition": measures.repeated_fraction > thresholds.max_repeated_fraction,
        "not_portuguese": measures.portuguese_confidence < thresholds.min_portuguese_confidence,
        "unknown_words": measures.unknown_word_fraction > thresholds.max_unknown_word_fraction,
        "numbers_lost": measures.number_retention < thresholds.min_number_retention,
        "entities_lost": measures.entity_retention < thresholds.min_entity_retention,
        "wrong_qa_format": measures.num_qa_pairs < thresholds.min_qa_pairs,
    }
    return Verdict(text, tuple(reason for reason, holds in reasons.items() if holds), measures)
