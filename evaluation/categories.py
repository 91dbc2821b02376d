"""Categories of tasks: an editable data file, which is not part of the official PoETa V2."""

from __future__ import annotations

from pathlib import Path

from evaluation.poeta import task_spec
from evaluation.poeta.table import DATA
from megatron_ext.errors import UserError
from megatron_ext.settings import read_layers

SHIPPED = DATA / "categories.yaml"


def read_categories(path: Path | None = None) -> dict[str, list[str]]:
    """Category -> names of its tasks, from a YAML file; None: the one that is shipped.

    Raises UserError for a task that PoETa V2 does not have, or that stands twice.
    """
    path = path or SHIPPED
    categories = read_layers(path)
    seen: set[str] = set()
    for category, tasks in categories.items():
        if not isinstance(tasks, list):
            raise UserError(f"{path}: category {category!r} must be a list of tasks")
        for task in tasks:
            task_spec(task)
            if task in seen:
                raise UserError(f"{path}: task {task} stands twice; a task has one category")
            seen.add(task)
    return categories
