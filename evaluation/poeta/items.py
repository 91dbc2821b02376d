"""The test items of PoETa V2 as plain texts, for the search for them in training data."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from evaluation.poeta.families import load_task
from evaluation.poeta.sources import find_raw_data, open_raw_data
from evaluation.poeta.table import TaskSpec, expand_names, task_spec
from evaluation.suites.items import without_template
from megatron_ext.artifacts import Artifact
from megatron_ext.errors import UserError
from megatron_ext.files import write_text
from megatron_ext.identity import PLACE, WATCHING
from megatron_ext.stage import StageSettings, make_artifact

ITEMS = "items.jsonl"


class ItemsSettings(StageSettings):
    """Which test items are written."""

    tasks: tuple[str, ...] = ("all",)
    """Official names of tasks; `all`: the 44."""
    data: Annotated[Path | None, PLACE] = None
    """Folder of raw data that is looked at first; none: the environment variable POETA_DATA."""
    allow_download: Annotated[bool, WATCHING] = True
    """Whether raw data may be fetched from its public sources."""


def write_items(settings: ItemsSettings, output: Path) -> Artifact:
    """Write the items of every task whose raw data is at hand into the artifact `output` (kind "poeta_items").

    Raises UserError when there are none of any task.
    """
    found, missing = {}, []
    for name in expand_names(settings.tasks):
        try:
            found[name] = find_raw_data([task_spec(name)], settings.data, allow_download=settings.allow_download)
        except UserError:
            missing.append(name)
    if not found:
        raise UserError(f"raw data of none of the tasks is at hand: {', '.join(missing)}; name its folder with data=…")
    inputs = {name: place.path for places in found.values() for name, place in places.items()}

    def make(folder: Path) -> dict[str, Any]:
        items = {name: list(_items(task_spec(name), places)) for name, places in found.items()}
        write_text(folder / ITEMS, "".join(json.dumps(item, ensure_ascii=False) + "\n"
                                           for rows in items.values() for item in rows))
        return {"items": {name: len(rows) for name, rows in items.items()}, "tasks_without_data": missing}

    return make_artifact(output, kind="poeta_items", settings=settings, more={"tasks": list(found)}, inputs=inputs,
                         make=make)


def _items(spec: TaskSpec, places: Any) -> Iterator[dict[str, str]]:
    """All documents of a task's test set, without the words that all of them begin and end with (its template)."""
    documents = load_task(spec.name).load(open_raw_data(spec, places)).documents
    texts = without_template([document.text for document in documents])
    for number, (document, text) in enumerate(zip(documents, texts, strict=True)):
        name = number if document.id is None else document.id  # some raw data has no ids
        yield {"task": spec.name, "id": str(name), "text": text}
