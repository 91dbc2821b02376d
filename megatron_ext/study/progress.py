"""How far the nodes of a study are in a work folder, and why some of them will be made again."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from megatron_ext.artifacts import differences, is_finished, partial_folder
from megatron_ext.errors import UserError
from megatron_ext.files import read_json
from megatron_ext.identity import DECIDING, LAYOUT, PLACE, of_roles
from megatron_ext.parts import parts_of
from megatron_ext.study.nodes import Node
from megatron_ext.study.programs import settings_of
from megatron_ext.study.runner import config_file

_IDENTITY_CHARS = 8
_MOST_TOLD = 4


def goes_on_from(node: Node, work: Path) -> str | None:
    """Where an unfinished node will go on; None when it begins anew (or is finished)."""
    output = node.output(work)
    if is_finished(output):
        return None
    if node.kind == "run":
        checkpoints = sorted(output.glob("checkpoints/iter_???????"))
        return f"goes on after iteration {int(checkpoints[-1].name.removeprefix('iter_')):,}" if checkpoints else None
    parts = parts_of(output)
    if parts:
        return f"goes on: {sum(map(is_finished, parts))} of {len(parts)} parts are finished"
    return f"goes on with what is in {partial_folder(output)}" if partial_folder(output).exists() else None


def made_again(nodes: Sequence[Node], work: Path) -> Iterator[str]:
    """For each node that will be made though a folder of its name is there: in what it differs from the nearest one."""
    for node in nodes:
        if is_finished(node.output(work)):
            continue
        others = [(changes, folder) for folder in _others(node, work) if (changes := _changes(node, folder, work))]
        if others:
            changes, folder = min(others, key=lambda other: (len(other[0]), other[1].name))
            more = f"; and {len(changes) - _MOST_TOLD} more" if len(changes) > _MOST_TOLD else ""
            yield f"{node.name} is made again, {folder} differs: {'; '.join(changes[:_MOST_TOLD])}{more}"


def _others(node: Node, work: Path) -> list[Path]:
    """Finished and unfinished folders of the same stage and name."""
    output = node.output(work)
    stem = output.name[:-_IDENTITY_CHARS]
    found = [*output.parent.glob(f"{stem}{'?' * _IDENTITY_CHARS}"),
             *output.parent.glob(f"{stem}{'?' * _IDENTITY_CHARS}.partial")]
    return sorted(folder for folder in found if folder.name.removesuffix(".partial") != output.name)


def _changes(node: Node, other: Path, work: Path) -> list[str]:
    """One line for each setting or input in which a node differs from what another folder was made with."""
    identity = other.name.removesuffix(".partial")[-_IDENTITY_CHARS:]
    file = config_file(node, work, identity)
    if not file.exists():
        return ["its settings were not kept"]
    with suppress(UserError, json.JSONDecodeError):
        before, now = _deciding(node, read_json(file)), _deciding(node, node.config(work))
        told = [_tell(key, was, value, node) for key, was, value in differences(before, now)]
        return sorted(told, key=lambda line: line.startswith("input ")) or [_other_bytes(node)]
    return [f"{file} cannot be read"]


def _deciding(node: Node, values: dict[str, Any]) -> dict[str, Any]:
    """What decides a node's output; where a run is laid out otherwise, that is worth a word, too."""
    return of_roles(settings_of(node.program), values, (DECIDING, LAYOUT, PLACE), defaults=True)


def _tell(key: str, was: Any, value: Any, node: Node) -> str:
    if any(key == name or name.startswith(f"{key}.") or key.startswith(f"{name}.") for name in node.inputs):
        return f"input {key}: {_short(was)} is now {_short(value)}"
    return f"{key}: {was!r} is now {value!r}"


def _short(place: Any) -> str:
    """The last two parts of a path; a list as its length."""
    if isinstance(place, str):
        return "/".join(Path(place).parts[-2:])
    return "nothing" if place is None else f"{len(place)} of them" if isinstance(place, (list, dict)) else str(place)


def _other_bytes(node: Node) -> str:
    raw = [f"{key} ({value})" for key, value in node.inputs.items() if isinstance(value, Path)]
    return f"the bytes of {', '.join(raw)} have changed" if raw else "it was named by an older version"
