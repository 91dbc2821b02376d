"""From a study whose stages are all finished to its page."""

from __future__ import annotations

from pathlib import Path

from megatron_ext.artifacts import write_json
from megatron_ext.settings import load_settings
from megatron_ext.study.config import StudyConfig
from megatron_ext.study.graph import Node, build_graph
from megatron_ext.study.report_input import write_study_record
from megatron_ext.study.runner import report_node

STUDIES = "studies"


def keep_study(study: StudyConfig, work: Path) -> Path:
    """Keep a study with all its layers and overrides in the work folder, for its report job; returns the file."""
    file = work / STUDIES / f"{study.slug}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, study.model_dump(mode="json", by_alias=True, exclude_defaults=True))
    return file


def study_report(work: Path, slug: str) -> Node:
    """Write the record of a kept study whose stages are finished; returns the stage that makes the page."""
    study = load_settings(StudyConfig, work / STUDIES / f"{slug}.json")
    return report_node(write_study_record(study, build_graph(study), work))
