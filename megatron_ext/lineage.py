"""The chain of custody: from an artifact back through the content hashes of its inputs to the raw files.

An artifact's manifest names its inputs by content hash, not by place. Folders are searched for the artifacts that carry
those hashes, every file on the way is hashed again, and the first thing that does not fit is a broken link.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from megatron_ext.artifacts import Artifact
from megatron_ext.contents import plain_content_hash
from megatron_ext.errors import UserError
from megatron_ext.manifest import MANIFEST, read_manifest

RAW_KINDS = ("file", "folder")
RECORDS = "study*.json"  # what a report is made from; it lies in the study's folder and is no artifact
_SHORT = 12


@dataclass(frozen=True)
class Link:
    """One input of an artifact."""

    name: str
    """What the artifact calls it, e.g. `documents`."""
    kind: str
    content_hash: str
    found: Artifact | Path | None
    """The artifact, or the raw file or folder, that carries the hash; None when no place is known."""


@dataclass(frozen=True)
class Step:
    """One artifact of the chain with its inputs."""

    artifact: Artifact
    used_as: str
    """How the chain came here from the first artifact, e.g. `report > comparison > high/0`."""
    links: list[Link]


@dataclass
class Verification:
    """What checking a chain found."""

    steps: list[Step]
    problems: list[str] = field(default_factory=list)
    """Broken links; empty when all is well."""
    unchecked: list[str] = field(default_factory=list)
    """Raw inputs of which no place was told."""
    num_files: int = 0
    num_bytes: int = 0


class Places:
    """Artifacts below some folders, and raw files, by content hash."""

    def __init__(self, roots: Sequence[Path], raw: Sequence[Path] = ()) -> None:
        self.artifacts: dict[str, list[Artifact]] = {}
        self.damaged: list[str] = []
        self.raw = list(raw)
        self._records = [record for root in roots for record in sorted(root.glob(RECORDS))]
        for root in roots:
            if not root.is_dir():
                raise UserError(f"{root} is no folder that could be searched for artifacts")
            for artifact in sorted(self._artifacts_below(root), key=lambda found: str(found.path)):
                self.artifacts.setdefault(artifact.content_hash, []).append(artifact)

    def find(self, kind: str, digest: str) -> Artifact | Path | None:
        """Who carries a content hash."""
        if kind in RAW_KINDS:
            return self._raw_hashes.get(digest)
        return next((found for found in self.artifacts.get(digest, []) if found.kind == kind), None)

    def _artifacts_below(self, root: Path) -> Iterator[Artifact]:
        for parent, folders, names in os.walk(root):
            folders[:] = [name for name in folders if not name.endswith(".partial")]
            try:
                manifest = read_manifest(Path(parent)) if MANIFEST in names else None
            except UserError as error:
                self.damaged.append(str(error))
                continue
            if manifest is not None:
                yield Artifact(Path(parent), manifest)

    @cached_property
    def _raw_hashes(self) -> dict[str, Path]:
        return {_raw_hash(path): path for path in [*self._records, *self.raw]}


def trace(artifact: Artifact, places: Places) -> list[Step]:
    """The artifact and all that it was made from, each once, an artifact before its inputs."""
    steps: list[Step] = []
    waiting = [(artifact, artifact.kind)]
    seen = {artifact.content_hash}
    while waiting:
        current, used_as = waiting.pop(0)
        links = list(_links(current, places))
        steps.append(Step(current, used_as, links))
        for link in links:
            if isinstance(link.found, Artifact) and link.content_hash not in seen:
                seen.add(link.content_hash)
                waiting.append((link.found, f"{used_as} > {link.name}"))
    return steps


def verify(artifact: Artifact, places: Places) -> Verification:
    """Hash again every file of the chain; tell each file that differs and each link that leads nowhere."""
    result = Verification(trace(artifact, places), list(places.damaged))
    for step in result.steps:
        result.problems += [f"{problem} [{step.used_as}]" for problem in step.artifact.verify()]
        files = step.artifact.manifest["files"].values()
        result.num_files += len(files)
        result.num_bytes += sum(entry["bytes"] for entry in files)
        for link in step.links:
            if link.found is None:
                _report_missing(step, link, result)
    used = {link.found for step in result.steps for link in step.links if isinstance(link.found, Path)}
    result.problems += [f"{raw}: its bytes are not those of any raw input of the chain"
                        for raw in places.raw if raw not in used]
    result.problems = list(dict.fromkeys(result.problems))
    result.unchecked = list(dict.fromkeys(result.unchecked))
    return result


def tree(steps: Sequence[Step]) -> list[str]:
    """The chain as indented lines; what was shown before is not unfolded again."""
    by_hash = {step.artifact.content_hash: step for step in steps}
    shown: set[str] = set()

    def lines(step: Step, name: str, depth: int) -> Iterator[str]:
        artifact = step.artifact
        head = f"{'  ' * depth}{name}: {artifact.kind} {artifact.content_hash[:_SHORT]}"
        if artifact.content_hash in shown:
            yield f"{head} (above)"
            return
        shown.add(artifact.content_hash)
        yield f"{head}  {artifact.path}"
        for link in step.links:
            if link.content_hash in by_hash:
                yield from lines(by_hash[link.content_hash], link.name, depth + 1)
            else:
                place = link.found if link.found is not None else "not found"
                yield f"{'  ' * (depth + 1)}{link.name}: {link.kind} {link.content_hash[:_SHORT]}  {place}"

    return list(lines(steps[0], "artifact", 0)) if steps else []


def _links(artifact: Artifact, places: Places) -> Iterator[Link]:
    for name, entry in artifact.manifest["request"]["inputs"].items():
        found = places.find(entry["kind"], entry["content_hash"])
        yield Link(name, entry["kind"], entry["content_hash"], found)


def _report_missing(step: Step, link: Link, result: Verification) -> None:
    what = f"{link.kind} {link.content_hash[:_SHORT]}"
    if link.kind not in RAW_KINDS:
        result.problems.append(f"{step.artifact.path}: its input {link.name!r} ({what}) is in none of the searched "
                               f"folders, or was made again with other bytes [{step.used_as} > {link.name}]")
    else:
        result.unchecked.append(f"{link.name} ({what}) of {step.artifact.path}")


def _raw_hash(path: Path) -> str:
    """Content hash of a raw file or folder, read again."""
    if not path.exists():
        raise UserError(f"raw input {path} does not exist")
    return plain_content_hash(path, cached=False)
