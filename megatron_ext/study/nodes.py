"""The nodes of a study: each is one program that makes one artifact from those of others.

A node's identity is a hash of its kind, its settings and the identities of its inputs. It is known before anything has
run, it names the output folder, and nodes that several conditions share are one node.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from megatron_ext.artifacts import hash_json, partial_folder, reference
from megatron_ext.data.rewriting.packs import LANGUAGE, is_folder
from megatron_ext.identity import PLACE, WATCHING, role_at, with_roles
from megatron_ext.settings import validate
from megatron_ext.study.older import made_by_older_version
from megatron_ext.study.programs import settings_of

STAGES = ("model", "select", "rewrite", "judge", "originals", "tokenize", "overlap", "import", "run", "merge",
          "validate", "export", "evaluate", "compare")


@dataclass(frozen=True)
class Inside:
    """A folder inside a node's output, e.g. the last checkpoint of a run."""

    node: Node
    folder: str


@dataclass(frozen=True)
class Node:
    """One stage: a program, its settings, and where its inputs come from."""

    name: str
    """E.g. `select/high`; also the place of the output below the study's folder."""
    kind: str
    """Kind of the artifact that it makes."""
    program: str
    """Python module that is run."""
    settings: dict[str, Any]
    """Settings of the program, without places."""
    inputs: dict[str, Input] = field(default_factory=dict)
    """Setting that takes a place (dots for sections) -> what is read there."""
    after: tuple[Node, ...] = ()
    """Nodes that must have succeeded before, though nothing of them is read."""
    processes: int = 1
    """More than one, or a program that needs torch.distributed: started by torchrun."""

    @property
    def stage(self) -> str:
        """The stage that it belongs to: first part of its name."""
        return self.name.split("/")[0]

    @cached_property
    def identity(self) -> str:
        """Hash of what is asked for: the deciding settings, defaults included, and the inputs' identities."""
        read = {key: _identity(value) for key, value in self.inputs.items()
                if role_at(settings_of(self.program), key) is not WATCHING}
        named = {key: _identity_of_place(value) for key, value in self.named.items()}
        return hash_json([self.kind, self.program, self.deciding, read | named])

    @cached_property
    def deciding(self) -> dict[str, Any]:
        """The settings that decide what the program makes."""
        return with_roles(validate(settings_of(self.program), self._filled_in(), where=self.name))

    @cached_property
    def named(self) -> dict[str, Any]:
        """Places among the settings instead of the inputs: of prompts, of raw data, or a model's id on a hub."""
        return {key: value for key, value in self.settings.items()
                if value is not None and key not in self.inputs and self._names_place(key, value)}

    def _names_place(self, key: str, value: Any) -> bool:
        """A language is one where it is the folder of a pack, not the code of one."""
        return role_at(settings_of(self.program), key) is PLACE or (key == LANGUAGE and is_folder(str(value)))

    def _filled_in(self) -> dict[str, Any]:
        values = self._with_places(lambda value: ["."] * len(value) if isinstance(value, list) else ".")
        return values | {"output": "."} if "output" in settings_of(self.program).model_fields else values

    @property
    def label(self) -> str:
        """Name for its files and jobs, unique among all studies of a work folder."""
        return f"{self.name.replace('/', '.')}-{self.identity[:8]}"

    @property
    def parents(self) -> list[Node]:
        """Nodes that must be finished before."""
        return [*self.after, *_nodes_of(self)]

    @property
    def checkpoints(self) -> list[Inside]:
        """The checkpoints that it reads in the outputs of runs."""
        values = (value if isinstance(value, list) else [value] for value in self.inputs.values())
        return [one for some in values for one in some if isinstance(one, Inside)]

    def output(self, work: Path) -> Path:
        """Folder of the artifact: under this identity, or one that an older version made of the same request."""
        folder = work / f"{self.name}-{self.identity[:8]}"
        if folder.exists() or partial_folder(folder).exists():
            return folder
        return made_by_older_version(self, work) or folder

    def config(self, work: Path) -> dict[str, Any]:
        """The program's settings with the places of its inputs filled in."""
        return self._with_places(lambda value: _places(value, work))

    def _with_places(self, place: Callable[[Input], Any]) -> dict[str, Any]:
        values = copy.deepcopy(self.settings)
        for key, value in self.inputs.items():
            *sections, last = key.split(".")
            target = values
            for section in sections:
                target = target.setdefault(section, {})
            target[last] = place(value)
        return values

    def input_references(self, work: Path) -> set[tuple[str, str]] | None:
        """(kind, content hash) of everything that the node reads; None when some of it is not there."""
        places = [Path(place) for value in self.inputs.values() for place in _flat_places(value, work)]
        return {tuple(reference(place).values()) for place in places} if all(map(Path.exists, places)) else None


Input = Node | Inside | Path | list[Node] | list[Inside]


def in_order(wanted: Iterable[Node]) -> list[Node]:
    """These nodes and all that they need, each once, in the order of the stages."""
    nodes = {node.identity: node for root in wanted for node in _ancestors(root)}
    return sorted(nodes.values(), key=lambda node: STAGES.index(node.stage))


def _identity(value: Input) -> Any:
    match value:
        case list():
            return [_identity(one) for one in value]
        case Node():
            return value.identity
        case Inside():
            return [value.node.identity, value.folder]
        case Path():
            return reference(value)["content_hash"] if value.exists() else f"absent: {value}"


def _identity_of_place(value: Any) -> Any:
    """A place that the user names among a stage's settings (prompts, test items) by its bytes; a name as it is."""
    place = Path(str(value)).expanduser()
    return reference(place)["content_hash"] if place.exists() else str(value)


def _places(value: Input, work: Path) -> Any:
    match value:
        case list():
            return [_places(one, work) for one in value]
        case Node():
            return str(value.output(work))
        case Inside():
            return str(value.node.output(work) / value.folder)
        case Path():
            return str(value)


def _flat_places(value: Input, work: Path) -> list[str]:
    places = _places(value, work)
    return places if isinstance(places, list) else [places]


def _ancestors(node: Node, seen: set[str] | None = None) -> Iterator[Node]:
    """The node and all that it needs, inputs first, each once."""
    seen = set() if seen is None else seen
    for parent in node.parents:
        yield from _ancestors(parent, seen)
    if node.identity not in seen:
        seen.add(node.identity)
        yield node


def _nodes_of(node: Node) -> Iterator[Node]:
    for value in node.inputs.values():
        for one in value if isinstance(value, list) else [value]:
            if not isinstance(one, Path):
                yield one.node if isinstance(one, Inside) else one
