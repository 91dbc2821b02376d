"""Which tasks the harness knows by name, without their data: nothing here needs a network."""

from __future__ import annotations

import difflib
import logging
import os
from collections.abc import Collection, Iterator, Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evaluation.suites.settings import SuiteSettings

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

_MAX_LISTED = 12
Index = Mapping[str, Any]
"""Name -> what the harness has noted of a task, group or tag."""


def task_names(suite: SuiteSettings) -> tuple[str, ...]:
    """The names that a suite asks for: its own, else all tasks of its folder."""
    if suite.tasks or suite.include_path is None:
        return suite.tasks
    return tuple(_manager(suite.include_path, with_defaults=False).all_subtasks)


def task_manager(suite: SuiteSettings) -> TaskManager:
    """The harness' own catalogue, in which all names of a suite are. To read what ships with the harness takes a
    quarter of a minute: it is read only where a suite names something of it."""
    if suite.include_path is not None:
        own = _manager(suite.include_path, with_defaults=False)
        if all(_is_whole(own.task_index, name) for name in task_names(suite)):
            return own
    return _manager(suite.include_path, with_defaults=True)


def suite_problems(suites: Mapping[str, SuiteSettings], taken: Collection[str],
                   prefix: str = "suites.") -> Iterator[str]:
    """One line for each name that the harness does not know, or that is taken.

    Args:
        taken: names of tasks that a suite's task must not have.
        prefix: key of the suites.
    """
    for name, suite in suites.items():
        yield from (f"{prefix}{name}.{problem}" for problem in _problems(suite, taken))


def _problems(suite: SuiteSettings, taken: Collection[str]) -> Iterator[str]:
    if suite.include_path is not None and not suite.include_path.is_dir():
        yield f"include_path = {suite.include_path}: no such folder; name the one that holds the tasks' YAML files"
        return
    names = task_names(suite)
    if not names:
        yield f"include_path = {suite.include_path}: no YAML file in it is a task of lm-evaluation-harness"
        return
    index = task_manager(suite).task_index
    unknown = [name for name in names if name not in index]
    yield from (_unknown(name, suite, index) for name in unknown)
    asked = [(name, leaf) for name in names if name not in unknown for leaf in _leaves(index, name)]
    for position, (name, leaf) in enumerate(asked):
        if leaf in taken:
            yield f"tasks = {name}: a task of PoETa V2 is named {leaf}, too; give the suite's own another name"
        if leaf in (other for _, other in asked[:position]):
            yield f"tasks = {name}: {leaf} is asked for twice; name the group or the task, not both"
        if suite.metric and (known := _metrics(index, leaf)) and suite.metric.split(",")[0] not in known:
            yield f"metric = {suite.metric}: task {leaf} has no such metric ({', '.join(known)})"


def _unknown(name: str, suite: SuiteSettings, index: Index) -> str:
    where = f"lm-evaluation-harness {version('lm_eval')}"
    if suite.include_path is not None:
        own = _manager(suite.include_path, with_defaults=False).all_tasks
        where += f" or of include_path {suite.include_path} ({', '.join(own[:_MAX_LISTED]) or 'none there'})"
    near = difflib.get_close_matches(name, list(index), n=1, cutoff=0.6)
    mend = f"did you mean {near[0]!r}?" if near else "`lm_eval ls tasks` lists the names"
    return f"tasks = {name}: is no task, group or tag of {where}; {mend}"


def _children(entry: Any) -> list[str]:
    """Names below a group or tag, as far as they are names."""
    members = sorted(entry.tags) if entry.kind.name == "TAG" else (entry.cfg or {}).get("task", [])
    named = [one if isinstance(one, str) else one.get("task", one.get("group")) for one in members]
    return [one for one in named if isinstance(one, str)]


def _is_task(entry: Any) -> bool:
    return entry.kind.name in ("TASK", "PY_TASK")


def _leaves(index: Index, name: str) -> Iterator[str]:
    """Tasks below a name."""
    if name not in index or _is_task(index[name]):
        yield name
    else:
        for child in _children(index[name]):
            yield from _leaves(index, child)


def _is_whole(index: Index, name: str) -> bool:
    """Whether a name and all below it are in the index."""
    return name in index and (_is_task(index[name]) or all(_is_whole(index, one) for one in _children(index[name])))


def _metrics(index: Index, task: str) -> list[str]:
    """Metrics that a task's file names; empty where it leaves them to the harness, or to code."""
    cfg = index[task].cfg if task in index else None
    return [one["metric"] for one in (cfg or {}).get("metric_list") or () if isinstance(one.get("metric"), str)]


@cache
def _manager(include_path: Path | None, with_defaults: bool) -> TaskManager:
    os.environ.setdefault("TQDM_DISABLE", "1")  # bars of the libraries; ours are plain lines
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    return TaskManager(include_path=include_path, include_defaults=with_defaults)
