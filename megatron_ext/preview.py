"""What `--dry-run` of any stage tells: how far its output is, and what its inputs hold."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_ext.artifacts import Artifact, differences, is_finished, partial_folder
from megatron_ext.errors import UserError
from megatron_ext.settings_types import Slot, paths_in

if TYPE_CHECKING:
    from megatron_ext.settings import Settings

_REQUEST = ".request.json"
_CHOSEN = "auto"


def describe_stage(settings: Settings, output: Path) -> Iterator[str]:
    """Lines: the state of the output, then every place that the settings name.

    Raises UserError that lists every place that does not exist.
    """
    values = settings.model_dump(mode="json")
    yield f"output: {output}: {_state(output, values)}"
    places = list(dict.fromkeys(paths_in(values, Slot(type(settings)))))
    missing = [f"{key} = {place}: nothing is there" for key, place in places if not place.exists()]
    if missing:
        raise UserError("; ".join(missing))
    for key, place in places:
        yield f"{key}: {place}: {_contents(place)}"


def _state(output: Path, values: dict[str, Any]) -> str:
    if is_finished(output):
        made = Artifact.open(output)
        changes = _changes(made.settings, values)
        return (f"made from other settings, this would be refused ({changes})" if changes else
                f"finished ({_counts(made)}); nothing would be done")
    request = partial_folder(output) / _REQUEST
    if request.exists():
        changes = _changes(json.loads(request.read_text(encoding="utf-8")).get("settings", {}), values)
        return f"unfinished, of other settings ({changes})" if changes else "unfinished; this would go on with it"
    if output.exists() and any(output.iterdir()):
        raise UserError(f"{output} exists and is not an artifact; choose another output folder")
    return "would be made"


def _changes(before: dict[str, Any], now: dict[str, Any]) -> str:
    """Settings that both name and that differ; what is chosen by the stage itself (`auto`) is not known here."""
    common = {key for key in before.keys() & now.keys() if now[key] != _CHOSEN}
    return "; ".join(f"{key}: was {was!r}, is {value!r}" for key, was, value in differences(
        {key: before[key] for key in common}, {key: now[key] for key in common}))


def _contents(place: Path) -> str:
    if is_finished(place):
        artifact = Artifact.open(place)
        return f"{artifact.kind} ({_counts(artifact)})"
    if place.is_dir():
        files = [file for file in place.rglob("*") if file.is_file()]
        return f"folder of {len(files):,} files, {sum(file.stat().st_size for file in files):,} bytes"
    return f"file of {place.stat().st_size:,} bytes"


def _counts(artifact: Artifact) -> str:
    numbers = {key: value for key, value in artifact.counts.items() if isinstance(value, (int, float))}
    return ", ".join(f"{key} {value:,}" for key, value in numbers.items()) or "no counts"
