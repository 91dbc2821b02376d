"""Two campaigns against a small study: kill -9 of random processes, and damage to each kind of file.

    python -m tests.study.campaigns --kills 100 --seed 0 --work /tmp/campaign     # as make test-all does

What is told is written down in benchmarks/robustness.md.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import yaml

from megatron_ext.artifacts import Artifact
from megatron_ext.errors import UserError
from megatron_ext.manifest import MANIFEST, read_manifest
from tests.damage import HARMS
from tests.study.test_whole_study import study_values
from tests.unit.tiny_chat_model import make_tiny_chat_model

SHARE_OF_TWO_RUNNERS = 0.3
_TITLE = re.compile(r"^\[\d+/\d+\] (\w+)/", re.MULTILINE)


# Damage ---------------------------------------------------------------------------------------------------------------


@dataclass
class Damage:
    """What damaging files of a finished study came to."""

    noticed: Counter[str] = field(default_factory=Counter)
    """Harm -> files of which it was noticed, the file named."""
    missed: list[str] = field(default_factory=list)

    @property
    def num_kinds(self) -> int:
        """Kinds of files that were damaged."""
        return max(self.noticed.values(), default=0)


def damage_each_kind(work: Path, seed: int) -> Damage:
    """Harm a file of each kind in each way, ask for its artifact, and mend the file."""
    chance, result = random.Random(seed), Damage()
    for kind, files in sorted(kinds_of_files(work).items()):
        for harm in HARMS:
            artifact, path = chance.choice(files)
            kept = path.with_name(path.name + ".kept")
            shutil.copy2(path, kept)
            harm(path, chance)
            message = _refusal(artifact)
            if message is not None and (str(path) in message or (str(path.parent) in message and path.name in message)):
                result.noticed[harm.__name__] += 1
            else:
                result.missed.append(f"{harm.__name__} of {kind}: {path}: {message}")
            os.replace(kept, path)
            Artifact.open(artifact)
    return result


def kinds_of_files(work: Path) -> dict[str, list[tuple[Path, Path]]]:
    """`kind of the artifact, name without numbers` -> (artifact, file) of all that are not empty."""
    found = defaultdict(list)
    for place in sorted(path.parent for path in work.rglob(MANIFEST)):
        manifest = read_manifest(place)
        if manifest is None:
            continue
        for name in [MANIFEST, *manifest["files"]]:
            if (place / name).stat().st_size and (name == MANIFEST or Path(name).name != MANIFEST):
                found[f"{manifest['request']['kind']}: {re.sub(r'[0-9]+', 'N', name)}"].append((place, place / name))
    return dict(found)


def _refusal(artifact: Path) -> str | None:
    try:
        Artifact.open(artifact)
    except UserError as error:
        return str(error)
    return None


# Kills ----------------------------------------------------------------------------------------------------------------


@dataclass
class Kills:
    """What killing processes of studies came to."""

    by_stage: Counter[str] = field(default_factory=Counter)
    num_studies: int = 0
    num_with_two_runners: int = 0
    differing: list[str] = field(default_factory=list)
    """Artifacts whose payload is not that of the undisturbed study."""


def kill_at_random(study: Path, work: Path, undisturbed: dict[str, str], num_kills: int, seconds: float,
                   seed: int) -> Kills:
    """Run the study again and again; kill a random process at a random moment until so many were killed.

    Args:
        seconds: how long an undisturbed study takes.
    """
    chance, result = random.Random(seed), Kills()
    while sum(result.by_stage.values()) < num_kills:
        place = work / f"killed-{result.num_studies}"
        overrides = [f"run.checkpoint.asynchronous={'true' if chance.random() < 0.5 else 'false'}"]
        most = min(num_kills - sum(result.by_stage.values()), 20)
        for _ in range(chance.randint(most // 2 + 1, most)):
            stage = _one_kill(study, place, overrides, chance, seconds, result)
            if stage is None:  # it was finished first
                break
            result.by_stage[stage] += 1
        finish(study, place, overrides)
        contents = contents_of(place)
        result.differing += [f"{place / name}" for name in undisturbed.keys() | contents.keys()
                             if undisturbed.get(name) != contents.get(name)]
        result.num_studies += 1
        print(f"{sum(result.by_stage.values())} kills: {dict(result.by_stage)}, differing: {result.differing}",
              flush=True)
    return result


def _one_kill(study: Path, work: Path, overrides: list[str], chance: random.Random, seconds: float,
              result: Kills) -> str | None:
    """Start one or two runners and kill one of their processes; the stage that ran, None if all had ended by then."""
    two = chance.random() < SHARE_OF_TWO_RUNNERS
    log = work.with_name(f"{work.name}.log")
    with open(log, "a") as file:
        runners = [start(study, work, overrides, file) for _ in range(2 if two else 1)]
        time.sleep(chance.uniform(2, max(4, seconds / 4)))
        alive = [process for runner in runners if runner.poll() is None for process in _tree(runner.pid)]
        if alive:
            with_chance = chance.choice(alive)
            with_chance.kill()
        time.sleep(chance.uniform(0, 2))
        for runner in runners:  # what is left of this round; the next begins while its children may still be dying
            runner.kill()
            runner.wait()
    if not alive:
        return None
    result.num_with_two_runners += two
    stages = _TITLE.findall(log.read_text(errors="replace"))
    return stages[-1] if stages else "start"


def _tree(pid: int) -> Iterator[psutil.Process]:
    try:
        parent = psutil.Process(pid)
        yield from [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return


def start(study: Path, work: Path, overrides: list[str], output: object) -> subprocess.Popen:
    """A runner of the study."""
    command = [sys.executable, "-m", "tools.run_study", str(study), "--work", str(work), *overrides]
    return subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env={
        **os.environ, "POETA_DATA": "", "XDG_CACHE_HOME": str(work.with_name("cache"))})


def small_study(model: Path) -> dict[str, Any]:
    """All stages, as short as they can be: many starts of it are the point."""
    values = study_values(model)
    del values["evaluation"]["checkpoints"]
    values["run"]["validation"]["max_tokens_per_source"] = 4_000
    return values


def finish(study: Path, work: Path, overrides: list[str]) -> float:
    """Run the study to its end; returns how long that took, in seconds."""
    started = time.monotonic()
    with open(work.with_name(f"{work.name}.log"), "a") as log:
        code = start(study, work, overrides, log).wait(3600)
    assert code == 0, Path(log.name).read_text()[-4000:]
    return time.monotonic() - started


def contents_of(work: Path) -> dict[str, str]:
    """Place -> content hash of every artifact, but of the report, which tells of times."""
    return {str(path.parent.relative_to(work)): json.loads(path.read_text())["content_hash"]
            for path in work.rglob(MANIFEST) if path.relative_to(work).parts[0] != "report"}


def main() -> None:
    """Run both campaigns and print their results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, required=True, help="an empty folder, or one of an earlier call")
    arguments = parser.parse_args()
    work = arguments.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    study = work / "study.yaml"
    if not study.exists():
        study.write_text(yaml.safe_dump(small_study(make_tiny_chat_model(work / "tiny"))))
    os.environ["XDG_CACHE_HOME"] = str(work / "cache")
    seconds = finish(study, work / "undisturbed", [])
    print(f"undisturbed: {seconds:.0f} s, {len(contents_of(work / 'undisturbed'))} artifacts", flush=True)
    damage = damage_each_kind(work / "undisturbed", arguments.seed)
    print(f"damage: {damage.num_kinds} kinds of files, noticed {dict(damage.noticed)}, missed {damage.missed}",
          flush=True)
    kills = kill_at_random(study, work, contents_of(work / "undisturbed"), arguments.kills, seconds, arguments.seed)
    print(f"kills: {dict(kills.by_stage)} in {kills.num_studies} studies, {kills.num_with_two_runners} beside a second "
          f"runner; differing: {kills.differing}")
    sys.exit(1 if damage.missed or kills.differing else 0)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    main()
