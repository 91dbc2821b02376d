"""Going on with a run: from which checkpoint, whether it may, and what is written down of it.

`find_start` only reads, so that a dry run tells the same as the launch; `begin` is the first that writes.
"""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from megatron_ext.artifacts import ASIDE, MANIFEST, Artifact, differences, is_finished, write_json, write_text
from megatron_ext.config import RunConfig
from megatron_ext.errors import UserError
from megatron_ext.identity import LAYOUT, with_roles
from megatron_ext.settings import overlay
from megatron_ext.training.extension import GROWS, extends, extension_problems, older_order_problem
from megatron_ext.training.run_folder import (
    LATEST,
    RUN_STATE,
    STOP_FILE,
    checkpoint_folders,
    checkpoints_folder,
    identity_as_today,
    mark_kept,
    run_identity,
    skipped_until,
)
from megatron_ext.training.trunk import Trunk, open_trunk

CONFIG = "config.yaml"
LAUNCHES = "launches.json"


@dataclass(frozen=True)
class Start:
    """How a launch of a run begins."""

    iteration: int
    """Iterations that are done."""
    checkpoint: Path | None = None
    """Where the run's own state is read from; None: it begins, with its trunk or the base model."""
    trunk: Trunk | None = None
    """Where a branch that begins leaves its trunk."""
    is_finished: bool = False
    """There is nothing to do."""
    set_aside: tuple[Path, ...] = ()
    """Checkpoints, and the manifest of a finished run, that lie ahead of the start or are damaged."""
    told: tuple[str, ...] = ()
    """What a user must know, as lines."""

    def describe(self) -> str:
        """What the launch will do, in one line."""
        if self.is_finished:
            return "state: finished"
        if self.trunk is not None:
            return (f"state: not begun; starts after iteration {self.iteration} of its trunk, from "
                    f"{self.trunk.checkpoint.path} (content {self.trunk.checkpoint.content_hash[:12]})")
        return f"state: going on after iteration {self.iteration}" if self.iteration else "state: not begun"


@dataclass(frozen=True)
class Change:
    """A setting that another launch of a run has changed on the way."""

    iteration: int
    """Iterations that were done before the change."""
    key: str
    before: Any
    now: Any


def find_start(config: RunConfig) -> Start:
    """Where a run stands; nothing is written.

    Raises UserError when what is there belongs to a run with other deciding settings, or `resume_from` names no whole
    checkpoint.
    """
    asks_back = config.resume_from is not None and not _is_back_already(config)
    if is_finished(config.output) and not asks_back and not extends(config, finished := _finished_as(config)):
        _refuse_other(config, config.output / MANIFEST, finished, config.train_iters)
        return Start(config.train_iters, is_finished=True)
    choice = _Choice(config, asks_back)
    checkpoint = choice.checkpoint
    rest = {"set_aside": tuple(choice.set_aside), "told": tuple(choice.told)}
    if checkpoint is None:
        trunk = open_trunk(config.start, check=True) if config.start else None
        return Start(trunk.iteration if trunk else 0, trunk=trunk, **rest)
    state = json.loads((checkpoint / RUN_STATE).read_text(encoding="utf-8"))
    _refuse_other(config, checkpoint, state["identity"], state["iteration"])
    if problem := older_order_problem(config, state):
        raise UserError(f"{checkpoint} cannot be gone on from: {problem}, or choose another output folder")
    return Start(state["iteration"], checkpoint, **rest)


def begin(config: RunConfig, start: Start, num_processes: int) -> None:
    """Main rank: make the run folder ready for this launch. What lies ahead of the start is kept aside."""
    config.output.mkdir(parents=True, exist_ok=True)
    (config.output / STOP_FILE).unlink(missing_ok=True)
    for path in start.set_aside:
        _set_aside(path)
    for left in checkpoints_folder(config).glob("iter_*.partial"):  # of a save that was cut
        shutil.rmtree(left)
    if start.checkpoint is not None:
        write_text(checkpoints_folder(config) / LATEST, start.checkpoint.name + "\n")
    if start.trunk is not None:
        with suppress(OSError):  # the trunk's folder may be read-only
            mark_kept(start.trunk.checkpoint.path)
    _note_launch(config, start.iteration, num_processes)
    settings = config.model_dump(mode="json")
    write_text(config.output / CONFIG, yaml.safe_dump(settings, sort_keys=False, allow_unicode=True))


def changes_on_the_way(run: Path) -> list[dict[str, Any]]:
    """Settings that launches of a run have changed after its first iteration, as {iteration, key, before, now}."""
    launches: list[dict[str, Any]] = []
    for launch in _read_launches(run):  # what was done after a point that the run went back to does not count
        launches = [one for one in launches if one["iteration"] < launch["iteration"]] + [launch]
    return [{"iteration": after["iteration"], "key": key, "before": old, "now": new}
            for before, after in itertools.pairwise(launches)
            for key, old, new in differences(before["settings"], after["settings"])
            if not (key in GROWS and old is None)]  # which older versions did not note


class _Choice:
    """Which checkpoint a launch goes on from."""

    def __init__(self, config: RunConfig, asks_back: bool) -> None:
        self._config = config
        self._asks_back = asks_back
        self._there = {path.name: path for path in checkpoint_folders(config)}  # newest first
        self.told: list[str] = []

    @cached_property
    def checkpoint(self) -> Path | None:
        """The one asked for, else the one that `latest` names, else the newest; whole, hashes compared."""
        if self._asks_back:
            return self._asked_for()
        named = self._named()
        others = [path for path in self._there.values() if path != named]
        for path in [*([named] if named else []), *others]:
            problem = _damage(path)
            if problem is None:
                self._tell_choice(path, named)
                return path
            self.told.append(f"{problem}: {path.name} is set aside")
        if self.told:
            self.told.append("no whole checkpoint is left: the run begins again")
        return None

    @property
    def set_aside(self) -> Iterator[Path]:
        """All checkpoints ahead of the chosen one, and the manifest of a run that is not finished any more."""
        chosen = self.checkpoint
        yield from (path for path in self._there.values() if chosen is None or path.name > chosen.name)
        if is_finished(self._config.output):
            yield self._config.output / MANIFEST

    def _asked_for(self) -> Path:
        wanted = f"iter_{int(str(self._config.resume_from).removeprefix('iter_')):07d}"
        if wanted not in self._there:
            there = ", ".join(reversed(self._there)) or "none"
            raise UserError(f"resume_from = {wanted}: no whole checkpoint of that name in "
                            f"{checkpoints_folder(self._config)}; there are: {there}")
        if problem := _damage(self._there[wanted]):
            raise UserError(f"resume_from = {wanted}: {problem}; choose another checkpoint")
        self._tell_choice(self._there[wanted], self._there[wanted])
        return self._there[wanted]

    def _named(self) -> Path | None:
        """What `latest` names, if it is there."""
        pointer = checkpoints_folder(self._config) / LATEST
        if not pointer.exists():
            if self._there:
                self.told.append(f"{pointer} is missing")
            return None
        name = pointer.read_text(encoding="utf-8", errors="replace").strip()
        if name not in self._there:
            self.told.append(f"{pointer} names {name!r}, which is no whole checkpoint")
        return self._there.get(name)

    def _tell_choice(self, chosen: Path, named: Path | None) -> None:
        ahead = [path.name for path in self._there.values() if path.name > chosen.name]
        if chosen != named:
            self.told.append(f"going on from the newest whole checkpoint, {chosen.name}")
        elif ahead:
            self.told.append(f"going back to {chosen.name}: {', '.join(reversed(ahead))} "
                             f"{'are' if len(ahead) > 1 else 'is'} set aside in {chosen.parent / ASIDE}")


def _damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint; the hash of every byte that this machine has not seen is compared."""
    try:
        Artifact.open(checkpoint, kind="checkpoint").check()
    except UserError as error:
        return str(error)
    return None


def _refuse_other(config: RunConfig, place: Path, saved: Mapping[str, Any], iteration: int) -> None:
    """Raise UserError when deciding settings differ from those of what is there; those of the future may."""
    asked = _deciding(run_identity(config), iteration)
    there = _deciding(overlay(_recorded_settings(config.output), dict(saved)), iteration)
    grows = extends(config, there)
    changes = [f"{key} was {before!r}, is {now!r}" for key, before, now in differences(there, asked)
               if not (grows and key in GROWS)]
    if changes:
        raise UserError(f"{place} belongs to a run with other settings ({'; '.join(changes)}): going on from it would "
                        "mix two runs; restore the settings or choose another output folder")
    if grows and (problems := extension_problems(config, there, iteration)):
        raise UserError(f"{place} was made for train.budget_tokens {there['train']['budget_tokens']:,}; with "
                        f"{config.train.budget_tokens:,} from the start it would be another: {'; '.join(problems)}; or "
                        f"begin a branch, another output folder with start.checkpoint={place}")


def _deciding(identity: Mapping[str, Any], iteration: int) -> dict[str, Any]:
    """What decided the first `iteration` iterations."""
    deciding = identity_as_today(identity)
    deciding["train"]["skip_iterations"] = skipped_until(deciding["train"]["skip_iterations"], iteration)
    return deciding


def _finished_as(config: RunConfig) -> dict[str, Any]:
    """What decided the finished run."""
    return Artifact.open(config.output, kind="run").settings["run"]


def _recorded_settings(run: Path) -> dict[str, Any]:
    path = run / CONFIG
    return yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else {}


def _is_back_already(config: RunConfig) -> bool:
    """Whether the last launch went back to the same checkpoint: a job that is started again must not go back again."""
    launches = _read_launches(config.output)
    return bool(launches) and launches[-1]["resume_from"] == config.resume_from


def _note_launch(config: RunConfig, iteration: int, num_processes: int) -> None:
    launches = _read_launches(config.output)
    launch = {"iteration": iteration, "resume_from": config.resume_from,
              "settings": _may_change(config) | {"num_processes": num_processes}}
    if not launches or {**launches[-1], "iteration": iteration} != launch or iteration < launches[-1]["iteration"]:
        write_json(config.output / LAUNCHES, [*launches, launch])


def _may_change(config: RunConfig) -> dict[str, Any]:
    values = with_roles(config, (LAYOUT,))
    train = config.model_dump(mode="json", include={"train": {"skip_iterations", "budget_tokens"}})["train"]
    return overlay(values, {"train": train})


def _read_launches(run: Path) -> Sequence[dict[str, Any]]:
    path = run / LAUNCHES
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else []


def _set_aside(path: Path) -> None:
    """Move a checkpoint or manifest into `aside` beside it, under a name that is free."""
    folder = path.parent / ASIDE
    folder.mkdir(exist_ok=True)
    names = (path.name, *(f"{path.name}-{number}" for number in range(2, 10_000)))
    path.rename(next(folder / name for name in names if not (folder / name).exists()))
