"""What a settings class says about the value at a key: its type, through sections, dictionaries and parts of others."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import AfterValidator, BaseModel
from pydantic.fields import FieldInfo


def expand_home(text: str) -> str:
    """`~/x` in the user's home folder. Raises ValueError for a user who is not known."""
    if not text.startswith("~"):
        return text
    try:
        return str(Path(text).expanduser())
    except RuntimeError as error:
        raise ValueError(str(error)) from None


Place = Annotated[str, AfterValidator(expand_home)]
"""A text that may be the path of a folder, or a name: `~` is expanded."""


REPEATS = "a list in which a thing may stand twice"
"""Marks a field."""


@dataclass(frozen=True)
class PartOf:
    """Marks a dictionary whose keys are some of the keys of another settings class."""

    find: Callable[[], type[BaseModel]]
    """Imports the class, where it is needed."""
    taken: Mapping[str, Any] = field(default_factory=dict)
    """Dotted keys that cannot be given, for what holds the dictionary sets them -> values to check the others with."""


@dataclass(frozen=True)
class Slot:
    """A place for a value."""

    annotation: Any
    metadata: Sequence[Any] = field(default=())

    @property
    def section(self) -> type[BaseModel] | None:
        """The settings class whose keys may follow, if there is one."""
        for mark in self.metadata:
            if isinstance(mark, PartOf):
                return mark.find()
        if isinstance(self.annotation, type) and issubclass(self.annotation, BaseModel):
            return self.annotation
        return next((slot.section for slot in self._alternatives if slot.section), None)

    @property
    def _alternatives(self) -> list[Slot]:
        """The members of a union, without their None."""
        if get_origin(self.annotation) not in (Union, types.UnionType):
            return []
        return [_slot(member) for member in get_args(self.annotation) if member is not type(None)]

    def below(self, key: str) -> Slot:
        """The place below a key; of type Any where it is not known."""
        if self.section is not None:
            info = field_of(self.section, key)
            return Slot(info.annotation, info.metadata) if info else Slot(Any)
        for slot in self._alternatives or [self]:
            origin, arguments = get_origin(slot.annotation), get_args(slot.annotation)
            if origin in (dict, Mapping) and len(arguments) == 2:
                return _slot(arguments[1])
            if origin in (list, tuple) and arguments:
                return _slot(arguments[0])
        return Slot(Any)

    @property
    def is_text(self) -> bool:
        """Whether only a text, a path or null can be here."""
        leaves = [slot.annotation for slot in self._alternatives or [self]]
        return all(leaf in (str, Path) or _is_literal_text(leaf) for leaf in leaves)

    @property
    def can_be_text(self) -> bool:
        """Whether a text, or a list of texts, is what can be here."""
        slots = self._alternatives
        return any(slot.is_text for slot in slots) and all(slot.is_text or slot.below("0").is_text for slot in slots)

    @property
    def is_path(self) -> bool:
        """Whether what is here is a path."""
        return any(slot.annotation is Path for slot in self._alternatives or [self])

    @property
    def is_place(self) -> bool:
        """Whether a path, or a name in its stead, can be here."""
        return self.is_path or any(_expands_home(slot.metadata) for slot in [self, *self._alternatives])

    @property
    def can_be_null(self) -> bool:
        """Whether null can be here."""
        return type(None) in get_args(self.annotation)


def _expands_home(metadata: Sequence[Any]) -> bool:
    return any(isinstance(mark, AfterValidator) and mark.func is expand_home for mark in metadata)


def _slot(annotation: Any) -> Slot:
    if get_origin(annotation) is Annotated:
        inner, *metadata = get_args(annotation)
        return Slot(inner, metadata)
    return Slot(annotation)


def _is_literal_text(annotation: Any) -> bool:
    return get_origin(annotation) is Literal and all(isinstance(value, str) for value in get_args(annotation))


def field_of(cls: type[BaseModel], key: str) -> FieldInfo | None:
    """The field that a key of a file names."""
    return next((info for name, info in cls.model_fields.items() if key == (info.alias or name)), None)


def keys_of(cls: type[BaseModel]) -> list[str]:
    """The keys of a class, as they stand in files."""
    return [info.alias or name for name, info in cls.model_fields.items()]


def dotted_keys(cls: type[BaseModel]) -> Iterator[str]:
    """All keys, those of sections as `section.key`."""
    for name in keys_of(cls):
        yield name
        slot = Slot(cls).below(name)
        if slot.section is not None and get_origin(slot.annotation) not in (dict, list):
            yield from (f"{name}.{key}" for key in dotted_keys(slot.section))


def slot_at(cls: type[BaseModel], keys: Sequence[str]) -> Slot:
    """The place at a dotted key."""
    slot = Slot(cls)
    for key in keys:
        slot = slot.below(key)
    return slot


def map_places(values: Any, slot: Slot, change: Callable[[str, str], str], prefix: str = "") -> Any:
    """A copy of plain values with `change(key, text)` for every text that stands where a path can be."""
    def changed(key: Any, value: Any) -> Any:
        return map_places(value, slot.below(str(key)), change, f"{prefix}.{key}" if prefix else str(key))

    if isinstance(values, dict):
        return {key: changed(key, value) for key, value in values.items()}
    if isinstance(values, list):
        return [changed(position, value) for position, value in enumerate(values)]
    return change(prefix, values) if isinstance(values, str) and slot.is_place else values


def paths_in(values: Any, slot: Slot, key: str = "") -> Iterator[tuple[str, Path]]:
    """Every path in plain values, with its key."""
    if isinstance(values, (dict, list)):
        for name, value in values.items() if isinstance(values, dict) else enumerate(values):
            yield from paths_in(value, slot.below(str(name)), f"{key}.{name}" if key else str(name))
    elif isinstance(values, str) and slot.is_path:
        yield key, Path(values)


def leaf_types(annotation: Any) -> set[Any]:
    """The types inside an annotation, through unions, lists and dictionaries."""
    arguments = [argument for argument in get_args(annotation) if get_origin(annotation) is not Literal]
    return {annotation}.union(*(leaf_types(argument) for argument in arguments))
