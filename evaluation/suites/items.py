"""The items of suites as plain texts, for the search for them in training text."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from evaluation.suites.catalogue import suite_problems
from evaluation.suites.evaluate import load_tasks
from evaluation.suites.settings import SuiteName, SuiteSettings
from megatron_ext.artifacts import Artifact
from megatron_ext.errors import UserError
from megatron_ext.files import write_text
from megatron_ext.stage import StageSettings, make_artifact

if TYPE_CHECKING:
    from lm_eval.api.task import Task

ITEMS = "items.jsonl"


class SuiteItemsSettings(StageSettings):
    """Which items are written."""

    suites: dict[SuiteName, SuiteSettings] = Field(min_length=1)
    """Name -> tasks of lm-evaluation-harness."""


def write_suite_items(settings: SuiteItemsSettings, output: Path) -> Artifact:
    """Write the items that are evaluated, question and right answer, into the artifact `output` (kind "suite_items").

    Raises UserError for a name that the harness does not know, and data that cannot be had.
    """
    if problems := list(suite_problems(settings.suites, taken=())):
        raise UserError("; ".join(problems))
    inputs = {f"suites.{name}.include_path": suite.include_path for name, suite in settings.suites.items()
              if suite.include_path is not None}

    def make(folder: Path) -> dict[str, Any]:
        rows = {f"{name}/{task}": list(_items(f"{name}/{task}", one, suite.limit))
                for name, suite in settings.suites.items() for task, one in load_tasks(name, suite).items()}
        write_text(folder / ITEMS, "".join(json.dumps(row, ensure_ascii=False) + "\n"
                                           for some in rows.values() for row in some))
        return {"items": {name: len(some) for name, some in rows.items()}}

    return make_artifact(output, kind="suite_items", settings=settings, inputs=inputs, make=make)


def without_template(texts: Sequence[str]) -> list[str]:
    """Texts without the words that all of them begin and end with."""
    words = [text.split() for text in texts]
    head = _num_common(words)
    tail = _num_common([one[head:][::-1] for one in words])
    return [" ".join(one[head:len(one) - tail]) for one in words]


def _num_common(texts: Sequence[Sequence[str]]) -> int:
    """How many first words all texts share; 0 for a single text, which is no template."""
    if len(texts) < 2:
        return 0
    return sum(1 for _ in takewhile(lambda words: len(set(words)) == 1, zip(*texts, strict=False)))


def _items(name: str, task: Task, limit: int | None) -> Iterator[dict[str, str]]:
    docs = [doc for _, doc in task.doc_iterator(limit=limit)]
    texts = zip(without_template([_question(task, doc) for doc in docs]), docs, strict=True)
    for number, (question, doc) in enumerate(texts):
        yield {"task": name, "id": f"{name}/{number}", "text": f"{question} {_answer(task, doc)}".strip()}


def _question(task: Task, doc: Mapping[str, Any]) -> str:
    """What stands before the answer; of a sentence with several beginnings the right one."""
    text = task.doc_to_text(doc)
    return _choices(task, doc)[text] if isinstance(text, int) else str(text)


def _answer(task: Task, doc: Mapping[str, Any]) -> str:
    target, choices = task.doc_to_target(doc), _choices(task, doc)
    first = target[0] if isinstance(target, list) and target else target
    return str(choices[first] if isinstance(first, int) and 0 <= first < len(choices) else first)


def _choices(task: Task, doc: Mapping[str, Any]) -> list[Any]:
    """The options of a question; none: it has none."""
    has_choices = getattr(task.config, "doc_to_choice", None) is not None
    return list(task.doc_to_choice(doc)) if has_choices else []
