"""The study file: one corpus, its subsets and rewrites, and the conditions that are compared.

The contract: conditions differ in their data alone. Any other difference must be named in `allow_differences`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from megatron_ext.config import RunConfig
from megatron_ext.data.model_folder import obtainable
from megatron_ext.data.rewriting.packs import DEFAULT_LANGUAGE, language_folder
from megatron_ext.errors import UserError
from megatron_ext.settings import (
    PartOf,
    Place,
    Settings,
    load_settings,
    overlay,
    part_problems,
    read_layers,
    validate,
)
from megatron_ext.settings_types import Slot, expand_home, map_places
from megatron_ext.study.contract import check_contract, trunk_problems
from megatron_ext.study.cost_settings import CostSettings
from megatron_ext.study.job_settings import JobSettings
from megatron_ext.study.language import hand_down, is_code
from megatron_ext.study.names import NEUTRAL, name_problems
from megatron_ext.study.programs import settings_of
from megatron_ext.study.sections import (
    PLACES,
    ConditionConfig,
    CorpusConfig,
    EvaluationConfig,
    HeldOutConfig,
    JudgeConfig,
    RewriterConfig,
    SourceAmount,
    StyleSource,
    SubsetConfig,
    TrunkConfig,
    part_of,
)

REWRITES = "rewrites"
_SUBSETS_OWN = {"corpus": ".", "tokenizer": ".", "text_column": "text", "id_column": None, "scores": {}, "rule": None,
                "budget_tokens": 1}
Name = Annotated[str, Field(min_length=1)]
_RUN = PartOf(lambda: RunConfig, {"output": ".", "model.hf_folder": ".", "data.sources": {}, "validation.sources": {},
                                  "train.seed": 0})


class StudyConfig(Settings):
    """A study of training data."""

    name: Name
    """Short name; also the title of the report."""
    description: str = ""
    """One paragraph for the report: the question."""
    corpus: CorpusConfig
    base_model: Place
    """Model that is trained on: a name that tools.fetch_model knows, a Hugging Face id or a folder."""
    tokenizer: Place | None = None
    """Model whose tokenizer counts and encodes; null: `base_model`. Studies of several model sizes that name one share
    their selections, rewrites and tokenizations; it must give the ids of the base model's."""
    language: Place = DEFAULT_LANGUAGE
    """Of the corpus: a code (pt, en) or the folder of a pack of one's own (docs/languages.md). What rewrites and what
    judges rewrites has it, too, unless their settings name another."""
    subsets: dict[str, SubsetConfig] = Field(min_length=1)
    """Name -> subset."""
    rewriter: RewriterConfig | None = None
    """None: nothing is rewritten."""
    more_rewriters: dict[str, RewriterConfig] = Field(default_factory=dict)
    """Name -> further rewriter; `<subset>_<name>` is then a source of blends."""
    judge: JudgeConfig | None = None
    """None: no model judges the rewrites."""
    style_sources: dict[str, StyleSource] = Field(default_factory=dict)
    """Name of a source -> the rewrites that it is a part of."""
    select: Annotated[dict[str, Any], part_of("tools.select_corpus", _SUBSETS_OWN)] = Field(default_factory=dict)
    """Settings of tools.select_corpus that all subsets share, e.g. `max_chars`."""
    tokenize: Annotated[dict[str, Any], part_of("tools.tokenize_corpus", PLACES | {"styles": None})] = Field(
        default_factory=dict)
    """Settings of tools.tokenize_corpus, e.g. `valid_fraction`."""
    run_file: Path | None = None
    """Base run configuration; `run` overlays it."""
    run: Annotated[dict[str, Any], _RUN] = Field(default_factory=dict)
    """Run configuration without output, model folder and sources: equal in all conditions."""
    data_parallel_size: int = Field(default=1, gt=0, le=2**20)
    """Model replicas; processes of a run = this x tp x pp x cp."""
    trunk: TrunkConfig | None = None
    """The run that all conditions branch from; null: each starts from the base model."""
    conditions: dict[str, ConditionConfig] = Field(min_length=1)
    """Name -> condition."""
    validation_sources: list[str] = Field(default_factory=list)
    """Sources whose held-out split (`tokenize.valid_fraction`) every condition is measured on; empty: all sources."""
    validation: HeldOutConfig = HeldOutConfig()
    """Text that is only measured."""
    seeds: list[Annotated[int, Field(ge=0)]] = Field(default_factory=lambda: [0], min_length=1)
    """Seeds of the order of samples; every condition runs with each."""
    allow_differences: list[str] = Field(default_factory=list)
    """Keys of the run configuration in which conditions may differ besides their data."""
    evaluation: EvaluationConfig
    jobs: JobSettings = JobSettings()
    """What the stages ask of a cluster; run_study does not read it."""
    cost: CostSettings = CostSettings()
    """Speeds and sizes from which submit_study foretells GPU-hours and disk."""

    @field_validator("base_model", "tokenizer")
    @classmethod
    def _can_be_had(cls, model: str | None) -> str | None:
        return model if model is None else obtainable(model)

    @field_validator("language")
    @classmethod
    def _is_known(cls, language: str) -> str:
        language_folder(language)
        return language

    @model_validator(mode="before")
    @classmethod
    def _hand_down_language(cls, values: Any) -> Any:
        return hand_down(values)

    @property
    def slug(self) -> str:
        """The name as it can stand in a file name."""
        return re.sub(r"[^\w.-]+", "-", self.name)

    @property
    def rewriters(self) -> dict[str, RewriterConfig]:
        """All rewriters by name; `rewrites` is `rewriter`."""
        return ({REWRITES: self.rewriter} if self.rewriter else {}) | self.more_rewriters

    @property
    def rewritten_sources(self) -> dict[str, tuple[str, str]]:
        """Source -> the subset that is rewritten and the rewriter's name."""
        return {f"{subset}_{name}": (subset, name)
                for name, rewriter in self.rewriters.items() for subset in rewriter.subsets}

    @property
    def originals(self) -> dict[str, str]:
        """Source of the originals of exactly the accepted chunks -> the rewritten source that it is matched to."""
        return {f"{subset}_{'rewritten' if name == REWRITES else name}_originals": source
                for source, (subset, name) in self.rewritten_sources.items()}

    @property
    def used_originals(self) -> dict[str, str]:
        """Those that something in the study names; the others are not made."""
        named = {name for condition in self.conditions.values() for name in condition.sources}
        named |= set(self.trunk.sources if self.trunk else {})
        named |= {part.rewrites for part in self.style_sources.values()} | set(self.validation_sources)
        return {name: source for name, source in self.originals.items() if name in named}

    @property
    def sources(self) -> list[str]:
        """Names of all sources: subsets, their rewrites, originals of these, single styles."""
        return [*self.subsets, *self.rewritten_sources, *self.used_originals, *self.style_sources]

    @property
    def held_out(self) -> list[str]:
        """Sources whose held-out split is measured; none where nothing is held out."""
        if not self.tokenize.get("valid_fraction"):
            return []
        return self.validation_sources or self.sources

    @property
    def measured_texts(self) -> list[str]:
        """Texts that every model's loss is measured on."""
        return [*([NEUTRAL] if self.validation.neutral else []), *self.held_out]

    def trained_on(self, condition: str) -> list[str]:
        """Sources that a condition is trained on, with the subsets whose text the rewritten ones were made of."""
        names = [*self.conditions[condition].sources, *(self.trunk.sources if self.trunk else {})]
        names += [self.style_sources[name].rewrites for name in names if name in self.style_sources]
        return list(dict.fromkeys([*names, *(self.rewritten_sources[name][0] for name in names
                                             if name in self.rewritten_sources)]))

    def styles_of(self, rewriter: str) -> list[str]:
        """The styles that a rewriter writes."""
        default = settings_of("tools.rewrite_corpus").model_fields["styles"].default
        return self.rewriters[rewriter].settings.get("styles", default)

    @model_validator(mode="after")
    def _names_and_contract(self) -> StudyConfig:
        if problems := list(name_problems(self)):
            raise ValueError("; ".join(problems))
        return self


def load_study(path: Path, overrides: list[str]) -> StudyConfig:
    """Read a study file and the run configuration that it rests on.

    A relative path in a study file, whatever it names, is looked for beside the file, then in the working folder; one
    that could be either is refused. A relative path on the command line is one of the working folder.

    Raises UserError that lists every mistake.
    """
    study = load_settings(StudyConfig, path, overrides, _find_places)
    if study.run_file is not None:
        base = _read_run_file(study.run_file)
        if problems := part_problems(_RUN, base):
            raise UserError(f"{study.run_file}: " + "; ".join(problems))
        study = study.model_copy(update={"run": overlay(base, study.run), "run_file": None})
    check_runs(study)
    return study


def _read_run_file(path: Path) -> dict[str, Any]:
    try:
        return read_layers(path)
    except UserError as error:
        raise UserError(f"run_file: {error}") from None


def check_runs(study: StudyConfig) -> None:
    """Raise UserError that lists every mistake of the runs' configurations, or what they differ in besides the data."""
    runs: dict[str, RunConfig] = {}
    problems: dict[str, list[str]] = {}
    for name in study.conditions:
        try:
            runs[name] = planned_run(study, name, study.seeds[0])
        except UserError as error:
            problems.setdefault(str(error), []).append(name)
    if problems:
        raise UserError("; ".join(f"run of {', '.join(names)}: {problem}" for problem, names in problems.items()))
    check_contract(runs, study.allow_differences)
    if study.trunk and (problems := trunk_problems(runs, planned_trunk(study))):
        raise UserError("trunk: " + "; ".join(problems))


def _find_places(values: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The values of a study file with its relative paths made relative to the working folder."""
    return map_places(values, Slot(StudyConfig), lambda key, text: _find(key, text, folder))


def _find(key: str, text: str, folder: Path) -> str:
    try:
        here, there = Path(expand_home(text)), folder / expand_home(text)
        if not text or is_code(key, text) or here.is_absolute() or not there.exists():
            return text
        if here.exists() and not here.samefile(there):
            raise UserError(f"{key} = {text} is in the study file's folder and in the working folder; name the one "
                            f"that is meant by its whole path: {there.absolute()} or {here.absolute()}")
        return text if here.exists() else str(there)
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        return text  # no path at all: told where the value is checked


def planned_run(study: StudyConfig, condition: str, seed: int) -> RunConfig:
    """The run before there are places: sources, model and trunk are named, not found.

    Raises UserError that lists every mistake of the study's `run` section.
    """
    settings = study.conditions[condition]
    values = overlay(study.run, _own(study, settings.sources, seed))
    if study.trunk:
        values["start"] = {"checkpoint": "trunk"}
    for key, value in settings.overrides.items():
        section, _, name = key.partition(".")
        if not name:
            raise UserError(f"conditions.{condition}.overrides: {key!r} is not of the form section.key")
        values = overlay(values, {section: {name: value}})
    return validate(RunConfig, values, where="its configuration (run_file, run, conditions)")


def planned_trunk(study: StudyConfig) -> RunConfig:
    """The run that all conditions leave, likewise: as long as it is shared, at the learning rate before their decay."""
    assert study.trunk is not None
    branch = planned_run(study, next(iter(study.conditions)), study.seeds[0])
    values = overlay(study.run, _own(study, study.trunk.sources, study.trunk.seed))
    values = overlay(values, {"train": {"budget_tokens": study.trunk.tokens}})
    values["schedule"] = {"style": "constant", "warmup_tokens": branch.warmup_samples * branch.data.seq_length,
                          "warmup_init_lr": branch.schedule.warmup_init_lr}
    return validate(RunConfig, values, where="the configuration of the trunk (run_file, run, trunk)")


def _own(study: StudyConfig, sources: dict[str, SourceAmount], seed: int) -> dict[str, Any]:
    """What a run of the study has of its own."""
    return {
        "output": ".", "model": {"hf_folder": "."}, "train": {"seed": seed},
        "data": {"sources": {name: {"path": name, **amount.model_dump(exclude_defaults=True)}
                             for name, amount in sources.items()}},
        "validation": {"sources": {name: name for name in study.held_out}},
    }
