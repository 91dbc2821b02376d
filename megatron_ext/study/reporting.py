"""From a study whose stages are all finished to its page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from megatron_ext.artifacts import write_json, write_text
from megatron_ext.errors import UserError
from megatron_ext.settings import load_settings
from megatron_ext.study.arms import missing_conditions, narrowed
from megatron_ext.study.config import StudyConfig
from megatron_ext.study.graph import build_graph
from megatron_ext.study.nodes import Node
from megatron_ext.study.registration import register
from megatron_ext.study.report_input import write_study_record
from megatron_ext.study.runner import report_node

STUDIES = "studies"


def keep_study(study: StudyConfig, nodes: Sequence[Node], work: Path) -> Path:
    """Keep a study with all its layers and overrides in the work folder, for its report job, and the folders that it
    uses, for tools.clean; returns the study's file. What it asks is registered."""
    register(study, work)
    file = work / STUDIES / f"{study.slug}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, study.model_dump(mode="json", by_alias=True, exclude_defaults=True), private=True)
    folders = sorted(str(node.output(work).relative_to(work)) for node in nodes)
    write_text(folders_file(file), "".join(f"{folder}\n" for folder in folders))
    return file


def is_kept(work: Path, slug: str) -> bool:
    """Whether a study of this name was run or submitted in the work folder."""
    return (work / STUDIES / f"{slug}.json").exists()


def folders_file(study_file: Path) -> Path:
    """Where the folders are listed that a kept study uses, one a line, relative to the work folder."""
    return study_file.with_suffix(".folders.txt")


def study_nodes(work: Path, slug: str) -> tuple[StudyConfig, list[Node]]:
    """A kept study and its graph."""
    study = load_settings(StudyConfig, work / STUDIES / f"{slug}.json")
    return study, build_graph(study)


def comparisons_of_what_is_there(work: Path, slug: str) -> list[Node]:
    """The comparisons of the conditions of a kept study that were evaluated, on suites, too, and that were measured on
    held-out text.

    Raises UserError when there is nothing to compare, with what is missing and why.
    """
    _, nodes = study_nodes(work, slug)
    asked = next(node for node in nodes if node.kind == "comparison")
    node = narrowed(asked, work)
    if node is None:
        told = "".join(f"\n  - {name}: {why}" for name, why in missing_conditions(asked, work).items())
        raise UserError(f"there is nothing to compare yet:{told}")
    others = [there for one in nodes if one.kind in ("suite_comparison", "held_out_comparison")
              and (there := narrowed(one, work))]
    return [node, *others]


def study_report(work: Path, slug: str) -> Node:
    """Write the record of a kept study from what is there; returns the stage that makes the page."""
    study, nodes = study_nodes(work, slug)
    return report_node(write_study_record(study, nodes, work))
