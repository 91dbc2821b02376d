"""The sections of a study file; `study/config.py` puts them together."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from evaluation.suites.settings import SuiteName, SuiteSettings
from megatron_ext.data.model_folder import obtainable
from megatron_ext.settings import PartOf, Place, Settings
from megatron_ext.study.programs import settings_of

PLACES = {"documents": ".", "tokenizer": "."}
"""Settings that many programs take and a study fills in."""
Count = Annotated[int, Field(gt=0, le=10**15)]


def part_of(program: str, taken: dict[str, Any]) -> PartOf:
    """Settings of a program, without those that the study fills in."""
    return PartOf(lambda: settings_of(program), taken)


class CorpusConfig(Settings):
    """The scored corpus."""

    path: Path
    """Parquet or JSONL file, or a folder of them."""
    text_column: str = "text"
    """Column of the text."""
    id_column: str | None = "id"
    """Column of the document's name; null names documents by a hash of their text."""
    scores: dict[str, str] = Field(default_factory=lambda: {"stem": "stem_score", "edu": "edu_score"})
    """Short name used in rules -> column."""


class SubsetConfig(Settings):
    """A subset of the corpus."""

    rule: str
    """Expression over the scores, e.g. `stem > 2.5 or edu > 2.5`."""
    budget_tokens: Count
    """Tokens to select, counted by the base model's tokenizer."""


class RewriterConfig(Settings):
    """How subsets are rewritten."""

    model: Place
    """A name that tools.fetch_model knows, a Hugging Face model id or a model folder."""
    subsets: list[str] = Field(min_length=1)
    """Subsets that are rewritten; `<subset>_rewrites` is then a source of blends (of one of `more_rewriters`:
    `<subset>_<name>`)."""
    settings: Annotated[dict[str, Any], part_of("tools.rewrite_corpus", PLACES | {"model": "."})] = Field(
        default_factory=dict)
    """Settings of tools.rewrite_corpus: engine, styles, sampling, bounds."""
    note: str | None = None
    """Shown in the report beside everything that rests on this rewriter."""

    @field_validator("model")
    @classmethod
    def _can_be_had(cls, model: str) -> str:
        return obtainable(model)


class JudgeConfig(Settings):
    """Who judges a sample of the accepted rewrites of every rewriter. No other stage depends on it."""

    model: Place | None = None
    """As of a rewriter; engine openai needs none."""
    settings: Annotated[dict[str, Any], part_of("tools.judge_rewrites", {"rewrites": ".", "model": "."})] = Field(
        default_factory=dict)
    """Settings of tools.judge_rewrites: engine, sample, bounds."""

    @field_validator("model")
    @classmethod
    def _can_be_had(cls, model: str | None) -> str | None:
        return model if model is None else obtainable(model)

    @model_validator(mode="after")
    def _has_a_model(self) -> JudgeConfig:
        if self.model is None and self.settings.get("engine") != "openai":
            raise ValueError("model: name an instruct model; engine openai alone needs none")
        return self


class StyleSource(Settings):
    """Some styles of a subset's rewrites, as a source of its own."""

    rewrites: str
    """Source that holds them, e.g. `high_rewrites`."""
    styles: list[str] = Field(min_length=1)
    """Styles that are taken from it."""


class SourceAmount(Settings):
    """How much of a source a condition sees: as in the run configuration, without the path."""

    tokens: int | None = None
    """Tokens."""
    epochs: float | None = None
    """Passes over the source."""
    fraction: float | None = None
    """Fraction of the budget."""
    fill: bool = False
    """What the others leave."""
    max_epochs: float = 1.0
    """Repetition that is allowed."""


class ConditionConfig(Settings):
    """One arm of the study."""

    sources: dict[str, SourceAmount] = Field(min_length=1)
    """Blend: a subset's name for its original text, `<subset>_rewrites` for its rewrites."""
    overrides: dict[str, Any] = Field(default_factory=dict)
    """`section.key: value` of the run that differ here; each must be listed in `allow_differences`."""


class TrunkConfig(Settings):
    """One run that all conditions leave at the same checkpoint. It trains at the constant learning rate that their
    schedule has before its decay."""

    sources: dict[str, SourceAmount] = Field(min_length=1)
    """Its blend, as a condition's."""
    tokens: Count
    """Tokens after which it is left; they count in run.train.budget_tokens."""
    seed: int = Field(default=0, ge=0)
    """Seed of its order of samples; `seeds` are those of the branches."""


class EvaluationConfig(Settings):
    """How models are evaluated."""

    settings: Annotated[dict[str, Any], part_of("evaluation.run_poeta", {"model": ".", "suites": {}})] = Field(
        default_factory=dict)
    """Settings of evaluation.run_poeta: tasks, limit, batch size, data folder."""
    suites: dict[SuiteName, SuiteSettings] = Field(default_factory=dict)
    """Name -> tasks of lm-evaluation-harness on which every model is evaluated besides, and conditions are compared."""
    checkpoints: Literal["last", "all"] | list[Count] = "last"
    """Checkpoints besides the last that are kept, exported and evaluated: `all` of `checkpoint.interval_tokens`, or
    those after so many tokens."""
    baseline: str
    """Condition that the others are compared with."""
    primary: str = "npm"
    """Outcome that the study is about, named before it runs: npm, a held-out text (`neutral`, a source) in bits a
    byte, a suite, or, where gold answers are scored, a measure of theirs (`cloze_bits_per_byte`). It makes the
    headline, and its differences are corrected for their own number alone."""
    interactions: dict[str, list[str]] = Field(default_factory=dict)
    """Name -> conditions [a, b, c, d]: is a - b another difference than c - d?"""
    outside: dict[str, Place] = Field(default_factory=dict)
    """Name -> model that is not compared, another base or size: evaluated as the others are, so that the page can tell
    how far such models differ on each task (its signal). The base model counts as one."""
    mean_of_last: int = Field(default=1, ge=1)
    """Checkpoints at the end of each run, of those that are evaluated, whose mean NPM is compared."""
    merge_last: int = Field(default=1, ge=1)
    """Checkpoints at the end of each run, of those that it saves, whose mean (tools.merge_checkpoints) is exported and
    measured in the place of the last one; 1: the last one itself. Those that are merged are not removed."""
    matched_by: Literal["tokens", "documents", "compute"] = "tokens"
    """What the conditions have equally much of; stated in the report."""

    @field_validator("outside")
    @classmethod
    def _can_be_had(cls, outside: dict[str, str]) -> dict[str, str]:
        return {name: obtainable(model) for name, model in outside.items()}


class HeldOutConfig(Settings):
    """What models are measured on besides what the sources hold out."""

    neutral: Path | None = None
    """Folder or file of documents that no condition is trained on, and of none of the sources: the text `neutral`, on
    which a lower loss is a better model."""
    text_column: str = "text"
    """Column of its text."""
    id_column: str | None = "id"
    """Column of its documents' ids: documents of one id are one piece of evidence; null: ids are made from the text."""
    overlapping: Literal["keep", "remove"] = "keep"
    """What becomes of held-out documents, of any text, that a condition's training text holds, too: 13 words in a row
    or a near duplicate. They are counted either way."""
