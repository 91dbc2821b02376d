"""The study file: one corpus, its subsets and rewrites, and the conditions that are compared.

The contract: conditions differ in their data alone. Any other difference must be named in `allow_differences`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from megatron_ext.config import RunConfig
from megatron_ext.errors import UserError
from megatron_ext.settings import Settings, load_settings, overlay, read_layers, validate

REWRITES_SUFFIX = "_rewrites"
BASE = "base"


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
    budget_tokens: int = Field(gt=0)
    """Tokens to select, counted by the base model's tokenizer."""


class RewriterConfig(Settings):
    """How subsets are rewritten."""

    model: str
    """A name that tools.fetch_model knows, a Hugging Face model id or a model folder."""
    subsets: list[str]
    """Subsets that are rewritten; `<subset>_rewrites` is then a source of blends."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """Settings of tools.rewrite_corpus: engine, styles, sampling, bounds."""
    note: str | None = None
    """Shown in the report beside everything that rests on this rewriter."""


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

    sources: dict[str, SourceAmount]
    """Blend: a subset's name for its original text, `<subset>_rewrites` for its rewrites."""
    overrides: dict[str, Any] = Field(default_factory=dict)
    """`section.key: value` of the run that differ here; each must be listed in `allow_differences`."""


class EvaluationConfig(Settings):
    """How models are evaluated."""

    settings: dict[str, Any] = Field(default_factory=dict)
    """Settings of evaluation.run_poeta: tasks, limit, batch size, data folder."""
    baseline: str
    """Condition that the others are compared with."""
    interactions: dict[str, list[str]] = Field(default_factory=dict)
    """Name -> conditions [a, b, c, d]: is a - b another difference than c - d?"""


class StudyConfig(Settings):
    """A study of training data."""

    name: str
    """Short name; also the title of the report."""
    description: str = ""
    """One paragraph for the report: the question."""
    corpus: CorpusConfig
    base_model: str
    """Model that is trained on: a name that tools.fetch_model knows, a Hugging Face id or a folder."""
    subsets: dict[str, SubsetConfig]
    """Name -> subset."""
    rewriter: RewriterConfig | None = None
    """None: nothing is rewritten."""
    select: dict[str, Any] = Field(default_factory=dict)
    """Settings of tools.select_corpus that all subsets share, e.g. `max_chars`."""
    tokenize: dict[str, Any] = Field(default_factory=dict)
    """Settings of tools.tokenize_corpus, e.g. `valid_fraction`."""
    run_file: Path | None = None
    """Base run configuration, relative to this file; `run` overlays it."""
    run: dict[str, Any] = Field(default_factory=dict)
    """Run configuration without output, model folder and sources: equal in all conditions."""
    data_parallel_size: int = Field(default=1, gt=0)
    """Model replicas; processes of a run = this x tp x pp."""
    conditions: dict[str, ConditionConfig]
    """Name -> condition."""
    validation_sources: list[str] = Field(default_factory=list)
    """Sources whose held-out split every condition is measured on; empty: all sources."""
    seeds: list[int] = Field(default_factory=lambda: [0], min_length=1)
    """Seeds of the order of samples; every condition runs with each."""
    allow_differences: list[str] = Field(default_factory=list)
    """Keys of the run configuration in which conditions may differ besides their data."""
    evaluation: EvaluationConfig

    @property
    def sources(self) -> list[str]:
        """Names of all sources: subsets, then rewrites."""
        rewritten = self.rewriter.subsets if self.rewriter else []
        return [*self.subsets, *(name + REWRITES_SUFFIX for name in rewritten)]

    @model_validator(mode="after")
    def _names_and_contract(self) -> StudyConfig:
        problems = [f"rewriter.subsets: {name!r} is no subset ({', '.join(self.subsets)})"
                    for name in (self.rewriter.subsets if self.rewriter else []) if name not in self.subsets]
        problems += [f"validation_sources: {name!r} is no source ({', '.join(self.sources)})"
                     for name in self.validation_sources if name not in self.sources]
        for condition, settings in self.conditions.items():
            problems += [f"conditions.{condition}.sources: {name!r} is no source ({', '.join(self.sources)})"
                         for name in settings.sources if name not in self.sources]
            problems += [f"conditions.{condition}.overrides: {key} = {value!r} differs from the other conditions; "
                         "conditions may differ in their data alone: remove it, or list the key in allow_differences"
                         for key, value in settings.overrides.items() if key not in self.allow_differences]
        if BASE in self.conditions:
            problems.append(f"conditions: {BASE!r} names the untrained base model; choose another name")
        if self.evaluation.baseline not in self.conditions:
            problems.append(f"evaluation.baseline: {self.evaluation.baseline!r} is no condition "
                            f"({', '.join(self.conditions)})")
        if problems:
            raise ValueError("; ".join(problems))
        return self


def load_study(path: Path, overrides: list[str]) -> StudyConfig:
    """Read a study file; relative paths in it are relative to the working folder, `run_file` to the study file."""
    study = load_settings(StudyConfig, path, overrides)
    if study.run_file is None:
        return study
    base = read_layers(path.parent / study.run_file)
    return study.model_copy(update={"run": overlay(base, study.run)})


def run_config(study: StudyConfig, condition: str, seed: int, *, output: Path, hf_folder: Path,
               tokenized: dict[str, Path]) -> RunConfig:
    """The run configuration of one condition and seed.

    Raises UserError that lists every mistake of the study's `run` section.
    """
    values = overlay(study.run, {
        "output": str(output),
        "model": {"hf_folder": str(hf_folder)},
        "train": {"seed": seed},
        "data": {"sources": {
            name: {"path": str(tokenized[name]), **amount.model_dump(exclude_defaults=True)}
            for name, amount in study.conditions[condition].sources.items()
        }},
        "validation": {"sources": {
            name: str(tokenized[name]) for name in study.validation_sources or study.sources
        }},
    })
    for key, value in study.conditions[condition].overrides.items():
        section, _, name = key.partition(".")
        if not name:
            raise UserError(f"conditions.{condition}.overrides: {key!r} is not of the form section.key")
        values = overlay(values, {section: {name: value}})
    return validate(RunConfig, values, where=f"run of condition {condition!r}")
