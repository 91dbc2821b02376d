"""The plan of studies: their graphs, and everything that can be known to be wrong with them before anything runs.

run_study and submit_study share it. Nothing here needs torch, a GPU or the data; what is not there yet is told.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evaluation.poeta.table import task_names
from evaluation.suites.catalogue import suite_problems
from megatron_ext.artifacts import is_finished
from megatron_ext.config import ParallelConfig, RunConfig
from megatron_ext.data.corpus import Corpus, check_columns
from megatron_ext.errors import UserError
from megatron_ext.model.hf_config import layout_problems
from megatron_ext.settings import validate
from megatron_ext.settings_types import Slot, paths_in
from megatron_ext.study.arms import narrowed
from megatron_ext.study.config import StudyConfig, load_study
from megatron_ext.study.cost import Forecast, reads_originals_alone
from megatron_ext.study.graph import build_graph
from megatron_ext.study.models import known_architecture
from megatron_ext.study.nodes import Inside, Node
from megatron_ext.training.preflight import empty_sources, planned_problems

_MAX_SHARDS = 64
"""Shards whose columns a plan looks at; the selection looks at all."""
_TOKENIZER_FILES = ("tokenizer*", "*.model", "vocab.json")
_PROBE = "Ação, coração e 3,14 pães: não há «fim»?\n\tÀs 10h, it's over."


@dataclass(frozen=True)
class PlannedStudy:
    """A study and its graph."""

    study: StudyConfig
    nodes: list[Node]


@dataclass
class Findings:
    """What a look at studies has found."""

    problems: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    """What cannot be checked yet, and why."""

    def refuse(self, what: str) -> None:
        """Raise one UserError that lists every problem, if there is one."""
        if self.problems:
            raise UserError(f"{what}:\n" + "\n".join(f"  - {problem}" for problem in self.problems))


def load_studies(paths: Sequence[Path], overrides: Sequence[str]) -> list[PlannedStudy]:
    """The studies of files, with their graphs. Raises UserError that lists the mistakes of all of them."""
    studies, problems = [], []
    for path in paths:
        try:
            studies.append(load_study(path, list(overrides)))
        except UserError as error:
            problems.append(str(error))
    if problems:
        raise UserError("\n".join(dict.fromkeys(problems)))
    return plan_studies(studies)


def plan_studies(studies: Sequence[StudyConfig]) -> list[PlannedStudy]:
    """The graph of each study; making it validates every stage's settings by the stage's own class.

    Raises UserError when two studies have one name: their pages would replace each other.
    """
    names = [study.slug for study in studies]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"two studies are named {', '.join(twice)}; give each a name of its own")
    planned = [PlannedStudy(study, _graph(study)) for study in studies]
    _keep_for_all([node for one in planned for node in one.nodes if node.stage == "run"])
    return planned


def _keep_for_all(runs: Sequence[Node]) -> None:
    """A run that several studies share keeps what any of them reads, whichever of them starts it."""
    kept: dict[str, set[int]] = {}
    for run in runs:
        kept.setdefault(run.identity, set()).update(run.settings["checkpoint"]["keep_tokens"])
    for run in runs:
        run.settings["checkpoint"]["keep_tokens"] = sorted(kept[run.identity])


def _graph(study: StudyConfig) -> list[Node]:
    try:
        return build_graph(study)
    except OSError as error:  # folders are named by the bytes of what the study reads
        raise UserError(f"{study.name}: {_names_of(study, Path(str(error.filename)))} cannot be read: "
                        f"{error.filename}: {error.strerror}") from None


def _names_of(study: StudyConfig, file: Path) -> str:
    """The settings of a study that name a file or, the nearest, a folder above it."""
    above = [(key, text) for key, text in _texts(study.model_dump(mode="json"))
             if file.absolute().is_relative_to(Path(os.path.expanduser(text)).absolute())]
    longest = max((len(text) for _, text in above), default=0)
    return " or ".join(f"{key} = {text}" for key, text in above if len(text) == longest) or "something that it names"


def _texts(values: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every text in plain values, with its dotted key."""
    if isinstance(values, (dict, list)):
        for name, value in values.items() if isinstance(values, dict) else enumerate(values):
            yield from _texts(value, f"{key}.{name}" if key else str(name))
    elif isinstance(values, str) and values:
        yield key, values


def examine(studies: Sequence[PlannedStudy], work: Path) -> Findings:
    """Everything that can be known of the studies now."""
    findings = Findings()
    for planned in studies:
        _examine_places(planned, findings)
        _examine_corpus(planned, findings)
        _examine_models(planned, work, findings)
        _examine_blends(planned, work, findings)
        _examine_suites(planned, findings)
        findings.problems += [f"{planned.study.name}: {problem}" for problem in _lost_checkpoints(planned.nodes, work)]
    for name in ("problems", "unknown"):
        setattr(findings, name, list(dict.fromkeys(getattr(findings, name))))
    return findings


def _examine_places(planned: PlannedStudy, findings: Findings) -> None:
    """That the files and folders that settings name are there: prompts, thresholds, test items, raw data."""
    values = planned.study.model_dump(mode="json", exclude={"corpus", "run_file"})
    findings.problems += [f"{planned.study.name}: {key} = {place}: nothing is there"
                          for key, place in paths_in(values, Slot(StudyConfig)) if not place.expanduser().exists()]


def _examine_corpus(planned: PlannedStudy, findings: Findings) -> None:
    """That the corpus, and text that is only measured, are there and have their columns."""
    config, held_out = planned.study.corpus, planned.study.validation
    corpora = {}
    if held_out.neutral and held_out.neutral.exists():  # else it was told
        corpora["validation.neutral"] = Corpus(held_out.neutral, held_out.text_column, held_out.id_column)
        if held_out.neutral.resolve().is_relative_to(config.path.expanduser().resolve()):
            findings.problems.append(f"{planned.study.name}: validation.neutral lies in the corpus, of which the "
                                     "subsets are: name text that no condition is trained on")
    if config.path.exists():
        corpora["corpus"] = Corpus(config.path, config.text_column, config.id_column, config.scores)
    else:
        findings.unknown.append(f"{planned.study.name}: corpus.path {config.path} does not exist: its columns are not "
                                "checked")
    for key, corpus in corpora.items():
        try:
            check_columns(corpus.shards()[:_MAX_SHARDS], corpus.columns())
        except UserError as error:
            findings.problems.append(f"{planned.study.name}: {key}: {error}")


def _examine_models(planned: PlannedStudy, work: Path, findings: Findings) -> None:
    """That the layouts fit the model, and that a study has one tokenizer."""
    name = planned.study.name
    for node in planned.nodes:
        if node.stage == "model" and (problem := _no_model(node)):
            findings.problems.append(f"{name}: {problem}")
        if node.stage not in ("run", "import"):
            continue
        try:
            architecture = known_architecture(node, work)
        except UserError as error:
            findings.problems.append(f"{name}: base_model: {error}")
            continue
        if architecture is None:
            findings.unknown.append(f"{name}: {planned.study.base_model} is not fetched: whether the layout fits it is "
                                    "not checked")
        values = node.config(work)
        if node.stage == "import":
            parallel = validate(ParallelConfig, values["parallel"], node.name)
            problems = layout_problems(architecture, parallel) if architecture else []
        else:
            config = validate(RunConfig, values | {"output": str(node.output(work))}, node.name)
            problems = planned_problems(config, node.processes, architecture)
        findings.problems += [f"{name}: {problem}" for problem in problems]
    try:
        _check_tokenizers(planned, work)
    except UserError as error:
        findings.problems.append(f"{name}: {error}")


def _no_model(node: Node) -> str | None:
    """What a local folder lacks that a node takes for a model's; the base model's is looked into further on."""
    folder = node.inputs.get("model")
    needed = _TOKENIZER_FILES if node.name == "model/tokenizer" else ("config.json",)
    if not isinstance(folder, Path) or node.name == "model/base" or any(
            file for pattern in needed for file in folder.glob(pattern)):
        return None
    return f"{node.name}: {folder} holds no {' and no '.join(needed)}; give a Hugging Face model folder"


def _examine_blends(planned: PlannedStudy, work: Path, findings: Findings) -> None:
    """That the amounts of every run can be had; what is to be rewritten is as large as expected."""
    forecast = Forecast(planned.study.cost, work)
    for node in planned.nodes:
        if node.stage != "run":
            continue
        try:
            problems = empty_sources(forecast.blend(node))
        except UserError as error:
            way_out = "" if planned.study.trunk else " (a `trunk` that all conditions leave would take a part of them)"
            problems = [f"{error}{way_out}"]
        told = [f"{planned.study.name}: {node.name}: {problem}" for problem in problems]
        if reads_originals_alone(node):
            findings.problems += told
        else:
            findings.unknown += [f"{one} (with the sizes that are expected, cost.rewrite_yield)" for one in told]


def _examine_suites(planned: PlannedStudy, findings: Findings) -> None:
    """That the harness knows the suites' tasks; a folder that is not there is told among the places."""
    suites = {name: suite for name, suite in planned.study.evaluation.suites.items()
              if suite.include_path is None or suite.include_path.exists()}
    findings.problems += [f"{planned.study.name}: {problem}"
                          for problem in suite_problems(suites, task_names(), "evaluation.suites.")]


def _lost_checkpoints(nodes: Sequence[Node], work: Path) -> Iterator[str]:
    """One line for each node that is to read checkpoints which their run has made and not kept."""
    for node in nodes:
        lost = [one for one in node.checkpoints if _is_lost(one, work)]
        if lost and not is_finished((narrowed(node, work) or node).output(work)):
            run = lost[0].node.output(work)
            yield (f"{node.name}: the run {run} did not keep {', '.join(one.folder for one in lost)}; "
                   "evaluation.checkpoints and merge_last must be set before a run comes there: lower them, or remove "
                   "the run's folder to train it again")


def _is_lost(checkpoint: Inside, work: Path) -> bool:
    run = checkpoint.node.output(work)
    place = run / checkpoint.folder
    with suppress(UserError):  # a damaged manifest is told where it is read
        newer = (one for one in place.parent.glob("iter_???????") if one.name > place.name)
        return not is_finished(place) and (is_finished(run) or any(newer))
    return False


def _check_tokenizers(planned: PlannedStudy, work: Path) -> None:
    """A tokenizer that a study names besides its base model's must give the same ids."""
    nodes = {node.name: node for node in planned.nodes}
    asked = [nodes.get("model/base"), nodes.get("model/tokenizer")]
    folders = [node.output(work) for node in asked if node is not None and is_finished(node.output(work))]
    if len(folders) < 2:
        return
    from megatron_ext.data.tokenizers import load_tokenizer

    base, other = map(load_tokenizer, folders)
    if base.vocab_size != other.vocab_size or _ids(base) != _ids(other):
        raise UserError(f"tokenizer {planned.study.tokenizer} and that of {planned.study.base_model} give other ids; "
                        "remove `tokenizer` from the study file")


def _ids(tokenizer: object) -> list[int]:
    import pyarrow as pa

    return tokenizer.encoder.encode(pa.array([_PROBE], pa.string())).ids.tolist()  # type: ignore[attr-defined]
