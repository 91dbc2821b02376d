"""The nodes that look in training text for what models are measured on: held-out documents, items of suites."""

from __future__ import annotations

from typing import Any

from megatron_ext.data.selection.settings import SelectSettings
from megatron_ext.study.config import StudyConfig
from megatron_ext.study.names import NEUTRAL
from megatron_ext.study.nodes import Input, Node

_SHORT_NGRAM = SelectSettings.model_fields["short_ngram"].default
"""Words in a row for short items, as selection looks for them."""


def held_out_overlap_node(study: StudyConfig, tokenized: dict[str, Node]) -> Node:
    """Which held-out documents the text of any condition holds, too."""
    documents = {name: node.inputs["documents"] for name, node in tokenized.items()}
    trained_on = list(dict.fromkeys(name for condition in study.conditions.values() for name in condition.sources))
    inputs = {f"training.{name}": documents[name] for name in trained_on}
    inputs |= {f"held_out.{name}": documents[name] for name in study.held_out}
    text = study.validation
    settings: dict[str, Any] = {"text_column": text.text_column, "id_column": text.id_column}
    if text.neutral is not None:
        inputs[f"neutral.{NEUTRAL}"] = text.neutral
    settings |= _split_settings(study, [*trained_on, *study.held_out])
    return Node("overlap/held_out", "overlap", "tools.find_overlap", settings, inputs)


def suite_settings(study: StudyConfig, *names: str) -> tuple[dict[str, Any], dict[str, Input]]:
    """Settings of suites (of all, unless some are named), and the folders that they name, by their keys."""
    chosen = {name: suite for name, suite in study.evaluation.suites.items() if not names or name in names}
    settings = {name: suite.model_dump(mode="json", exclude={"include_path"}) for name, suite in chosen.items()}
    return settings, {f"suites.{name}.include_path": suite.include_path for name, suite in chosen.items()
                      if suite.include_path is not None}


def suite_overlap_node(study: StudyConfig, tokenized: dict[str, Node]) -> Node:
    """Which items of the suites the text that any condition, or the trunk, is trained on holds, too."""
    inputs: dict[str, Input] = {f"training.{name}": tokenized[name].inputs["documents"]
                                for name in _trained_on(study)}
    for name in study.evaluation.suites:
        settings, folders = suite_settings(study, name)
        inputs[f"neutral.{name}"] = Node(f"overlap/items-{name}", "suite_items", "tools.suite_items",
                                         {"suites": settings}, folders)
    return Node("overlap/suites", "overlap", "tools.find_overlap",
                {**_split_settings(study, _trained_on(study)), "short_ngram": _SHORT_NGRAM}, inputs)


def _trained_on(study: StudyConfig) -> list[str]:
    """Sources of any run."""
    blends = [condition.sources for condition in study.conditions.values()]
    return list(dict.fromkeys(name for blend in [*blends, study.trunk.sources if study.trunk else {}]
                              for name in blend))


def _split_settings(study: StudyConfig, names: list[str]) -> dict[str, Any]:
    """What decides which documents of sources are trained on."""
    split = {key: study.tokenize[key] for key in ("valid_fraction", "split_seed") if key in study.tokenize}
    return split | {"styles": {name: part.styles for name, part in study.style_sources.items() if name in names}}
