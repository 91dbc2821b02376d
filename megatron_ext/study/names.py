"""The names of a study: what each refers to must be there, and be one thing."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Sequence
from importlib import import_module
from typing import TYPE_CHECKING

from megatron_ext.config import RunConfig
from megatron_ext.data.selection.rules import parse_rule
from megatron_ext.errors import UserError
from megatron_ext.settings_types import dotted_keys
from megatron_ext.study.contract import FREE

if TYPE_CHECKING:
    from megatron_ext.study.config import StudyConfig

BASE = "base"
"""Name of the untrained base model among the conditions."""
TRUNK = "trunk"
"""Name of the run that the conditions leave, among the runs."""
NEUTRAL = "neutral"
"""Name of the text that no condition is trained on, among the held-out texts."""
NPM = "npm"
"""Name of PoETa V2's score among the outcomes."""
_MAX_LISTED = 12
_NAME = re.compile(r"[\w-]+")
_LONGEST_NAME = 100  # of 255 bytes that a file's name may have, to which stages add theirs


def name_problems(study: StudyConfig) -> Iterator[str]:
    """One line for each name that refers to nothing, to two things, or cannot be a name."""
    yield from _source_problems(study)
    yield from _condition_problems(study)
    yield from _evaluation_problems(study)
    if not any(sign.isalnum() for sign in study.name):
        yield f"name = {study.name!r} must have a letter or digit"
    if len(study.name.encode()) > _LONGEST_NAME:
        yield f"name has {len(study.name.encode())} bytes, and may have {_LONGEST_NAME}: files are named by it"


def _source_problems(study: StudyConfig) -> Iterator[str]:
    for name, subset in study.subsets.items():
        try:
            parse_rule(subset.rule, study.corpus.scores)
        except UserError as error:
            yield f"subsets.{name}.{error}"
    for name, rewriter in study.rewriters.items():
        where = "rewriter" if rewriter is study.rewriter else f"more_rewriters.{name}"
        yield from _unknown(f"{where}.subsets", rewriter.subsets, study.subsets, "subset")
    if study.judge and not study.rewriters:
        yield "judge: nothing is rewritten in this study; add a rewriter, or remove the judge"
    for name, part in study.style_sources.items():
        where = f"style_sources.{name}"
        yield from _unknown(f"{where}.rewrites", [part.rewrites], [*study.rewritten_sources, *study.originals],
                            _source("rewritten "))
        source = study.originals.get(part.rewrites, part.rewrites)
        if source in study.rewritten_sources:
            _, rewriter_name = study.rewritten_sources[source]
            yield from _unknown(f"{where}.styles", part.styles, study.styles_of(rewriter_name), "style of its rewriter")
    yield from (f"{name!r} cannot be a name: letters, digits, _ and - alone, at most {_LONGEST_NAME} bytes"
                for name in [*study.sources, *study.conditions, *study.evaluation.outside]
                if not _NAME.fullmatch(name) or len(name.encode()) > _LONGEST_NAME)
    yield from (f"{name!r} names two sources; rename a subset, rewriter or style source"
                for name in _twice(study.sources))
    yield from _unknown("validation_sources", study.validation_sources, study.sources, _source())
    if NEUTRAL in study.sources and study.validation.neutral:
        yield f"{NEUTRAL!r} names a source and the text of validation.neutral; rename the source"
    if study.tokenize.get("valid_fraction") == 1:
        yield "tokenize.valid_fraction = 1 holds out all text: nothing is left to train on"
    if study.validation_sources and not study.held_out:
        yield "validation_sources: nothing is held out; set tokenize.valid_fraction above 0"


def _condition_problems(study: StudyConfig) -> Iterator[str]:
    for condition, settings in study.conditions.items():
        yield from _unknown(f"conditions.{condition}.sources", settings.sources, study.sources, _source())
        yield from (f"conditions.{condition}.overrides: {key} = {value!r} differs from the other conditions; "
                    "conditions may differ in their data alone: remove it, or list the key in allow_differences"
                    for key, value in settings.overrides.items() if key not in study.allow_differences)
    if "start" in study.run:
        yield "run.start: a study's runs leave a trunk of its own; describe it in `trunk`"
    if study.trunk:
        yield from _unknown("trunk.sources", study.trunk.sources, study.sources, _source())
        if TRUNK in study.conditions:
            yield f"conditions: {TRUNK!r} names the run that they leave; choose another name"
    if BASE in study.conditions:
        yield f"conditions: {BASE!r} names the untrained base model; choose another name"
    seen: dict[str, str] = {}
    for condition, settings in study.conditions.items():
        first = seen.setdefault(repr(settings), condition)
        if first != condition:
            yield f"conditions {first!r} and {condition!r} are equal: nothing could differ; change one, or use seeds"
    known = [key for key in dotted_keys(RunConfig) if key not in FREE]
    yield from _unknown("allow_differences", study.allow_differences, known, "key of the run configuration")


def _evaluation_problems(study: StudyConfig) -> Iterator[str]:
    evaluation = study.evaluation
    yield from _unknown("evaluation.baseline", [evaluation.baseline], study.conditions, "condition")
    others = [NPM, *study.measured_texts, *_likelihoods(study)]
    yield from _unknown("evaluation.primary", [evaluation.primary], [*others, *evaluation.suites],
                        "outcome of validation, validation_sources, evaluation.suites or evaluation.settings.scoring")
    yield from (f"evaluation.suites.{name}: names another outcome, too ({', '.join(others)}); rename the suite"
                for name in evaluation.suites if name in others)
    yield from (f"evaluation.outside.{name}: {model!r} is the base model, which counts as outside already"
                for name, model in evaluation.outside.items() if model == study.base_model)
    yield from (f"evaluation.outside.{name}: {'the base model' if name == BASE else 'a condition'} has this name; "
                "choose another" for name in evaluation.outside if name in (BASE, *study.conditions))
    if evaluation.merge_last > 1 and evaluation.mean_of_last > 1:
        yield ("evaluation: mean_of_last takes the mean of the last checkpoints' scores, merge_last that of their "
               "weights; choose one")
    known = [BASE, *study.conditions]
    for name, conditions in evaluation.interactions.items():
        yield from _unknown(f"evaluation.interactions.{name}", conditions, known, "condition")
        if len(set(conditions)) != 4 or len(conditions) != 4:
            yield f"evaluation.interactions.{name}: needs four conditions [a, b, c, d] for (a - b) - (c - d)"


def _likelihoods(study: StudyConfig) -> list[str]:
    """Measures of gold answers, where they are scored."""
    if "gold" not in study.evaluation.settings.get("scoring", ()):
        return []
    return [measure.name for measure in import_module("evaluation.measures").LIKELIHOODS]


def _source(kind: str = "") -> str:
    """What the names of sources come from, so that a removed section is named, too."""
    sections = "rewriter, more_rewriters" if kind else "subsets, rewriter, more_rewriters, style_sources"
    return f"{kind}source of {sections}"


def _unknown(key: str, names: Iterable[str], known: Iterable[str], what: str) -> Iterator[str]:
    known = list(known)
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            mend = (f"; did you mean {near[0]!r}?" if near and len(known) > _MAX_LISTED else
                    f" ({', '.join(known[:_MAX_LISTED]) or 'none'}{', …' if len(known) > _MAX_LISTED else ''})")
            yield f"{key}: {name!r} is no {what}{mend}"


def _twice(names: Sequence[str]) -> list[str]:
    return sorted({name for name in names if names.count(name) > 1})  # type: ignore[type-var]
