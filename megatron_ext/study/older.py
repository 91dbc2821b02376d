"""Folders that an older version made, under names that today's formula would not give them.

Their manifests tell what they were made from: a folder that answers what is asked for today is used where it lies.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_ext.artifacts import MANIFEST, differences
from megatron_ext.identity import of_roles
from megatron_ext.manifest import is_current, read_manifest
from megatron_ext.stage import as_today
from megatron_ext.study.programs import settings_of

if TYPE_CHECKING:
    from megatron_ext.study.nodes import Node


def made_by_older_version(node: Node, work: Path) -> Path | None:
    """The folder in which an older version has made what the node asks for."""
    older = list(_older_folders(node, work))
    references = node.input_references(work) if older else None
    if references is None:
        return None
    return next((folder for folder, manifest in older if _answers(manifest, node, references)), None)


def _older_folders(node: Node, work: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    place = work / node.name
    for manifest_file in sorted(place.parent.glob(f"{place.name}-????????/{MANIFEST}")):
        manifest = read_manifest(manifest_file.parent)
        if manifest is not None and not is_current(manifest) and manifest["request"]["kind"] == node.kind:
            yield manifest_file.parent, manifest


def _answers(manifest: Mapping[str, Any], node: Node, references: set[tuple[str, str]]) -> bool:
    """Whether it was made with the same deciding settings from the same bytes."""
    cls = settings_of(node.program)
    settings = manifest["request"]["settings"]
    made = as_today(cls, settings["run"] if node.kind == "run" else settings)
    if any(differences(of_roles(cls, made), node.deciding)):
        return False
    if "model" in node.named and settings.get("model") != node.named["model"]:
        return False
    noted = {(one["kind"], one["content_hash"]) for one in manifest["request"]["inputs"].values()}
    kinds = {kind for kind, _ in noted}
    return {one for one in references if one[0] in kinds} <= noted
