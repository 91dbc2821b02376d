"""What decides a stage's bytes: the one definition from which requests, names, contracts and plans follow.

Every setting has a role, given where the setting is defined (`Annotated[int, WATCHING]`), for a whole section or for
single keys of it; what is not marked is deciding.

    DECIDING  decides the bytes that the stage makes: part of requests and names.
    LAYOUT    how the work is done: another value gives the same numbers within rounding. May change when a stage goes
              on; a run records the change with its iteration, and runs that are compared must agree in it.
    WATCHING  what is told, kept, guarded or measured meanwhile. May change at any time.
    PLACE     where something lies; what lies there counts by its content, as an input.

An artifact's request holds the deciding settings and the contents of its inputs. A run may be gone on with when they
are equal; `training/resume.py` says so. The implementation of the layers (`local` or Transformer Engine),
recomputation, sizes of micro-batches and parallel sizes are layout: they change rounding alone. The kind of the
optimizer's storage (`use_distributed_optimizer`) is deciding: the states of one do not load into the other.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from enum import Enum
from typing import Any, get_args

from pydantic.fields import FieldInfo

from megatron_ext.settings import Settings


class Role(Enum):
    """What a setting does to the bytes that a stage makes."""

    DECIDING = "deciding"
    LAYOUT = "layout"
    WATCHING = "watching"
    PLACE = "place"


DECIDING, LAYOUT, WATCHING, PLACE = Role
_MISSING = object()


def role_of(field: FieldInfo) -> Role | None:
    """The role that a field was given; None: that of its section, and in the end DECIDING."""
    return next((one for one in field.metadata if isinstance(one, Role)), None)


def with_roles(settings: Settings, roles: Collection[Role] = (DECIDING,)) -> dict[str, Any]:
    """JSON values of the settings that have one of these roles, by section; sections without any are left out."""
    values = of_roles(type(settings), settings.model_dump(mode="json"), roles)
    for section in settings.unused_sections:
        values.pop(section, None)
    return values


def of_roles(cls: type[Settings], values: Mapping[str, Any], roles: Collection[Role] = (DECIDING,), *,
             defaults: bool = False) -> dict[str, Any]:
    """The same of plain values, which may have been written by an older version: unknown keys are left out.

    Args:
        defaults: fill in what is missing, as an older version's settings lack what came later.
    """
    return _section(cls, values, roles, DECIDING, defaults)


def roles_by_key(cls: type[Settings], inherited: Role = DECIDING, prefix: str = "") -> Iterator[tuple[str, Role]]:
    """(dotted key, role) of every setting; of a list or dict of sections `key.*.name`."""
    for name, field in cls.model_fields.items():
        role = role_of(field) or inherited
        section, many = section_of(field.annotation)
        if section is None:
            yield f"{prefix}{name}", role
        else:
            yield from roles_by_key(section, role, f"{prefix}{name}.{'*.' if many else ''}")


def role_at(cls: type[Settings], key: str) -> Role:
    """The role of the setting at a dotted key."""
    role, section = DECIDING, cls
    for part in key.split("."):
        if section is None:
            break
        field = section.model_fields.get(part)
        if field is not None:  # else the key of a dictionary of sections
            role = role_of(field) or role
            section, _ = section_of(field.annotation)
    return role


def section_of(annotation: Any) -> tuple[type[Settings] | None, bool]:
    """The settings class in a field's type, and whether the field holds many of them (a list or dict)."""
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        return annotation, False
    for argument in get_args(annotation):
        section, _ = section_of(argument)
        if section is not None:
            return section, getattr(annotation, "__origin__", None) in (dict, list, tuple)
    return None, False


def _chosen(field: FieldInfo, value: Any, roles: Collection[Role], inherited: Role, defaults: bool) -> Any:
    role = role_of(field) or inherited
    section, many = section_of(field.annotation)
    if value is _MISSING and defaults and not field.is_required():
        value = _json(field.get_default(call_default_factory=True))
    if section is None or value is None or value is _MISSING:
        return value if role in roles else _MISSING
    if not many:
        return _section(section, value, roles, role, defaults) or _MISSING
    items = value.items() if isinstance(value, Mapping) else enumerate(value)
    parts = {key: _section(section, one, roles, role, defaults) for key, one in items}
    if role not in roles and not any(parts.values()):
        return _MISSING
    return parts if isinstance(value, Mapping) else list(parts.values())


def _section(cls: type[Settings], values: Mapping[str, Any], roles: Collection[Role], inherited: Role,
             defaults: bool) -> dict[str, Any]:
    chosen = {name: _chosen(field, values.get(name, _MISSING), roles, inherited, defaults)
              for name, field in cls.model_fields.items()}
    return {name: value for name, value in chosen.items() if value is not _MISSING}


def _json(value: Any) -> Any:
    if isinstance(value, Settings):
        return value.model_dump(mode="json")
    if isinstance(value, Mapping):
        return {key: _json(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_json(one) for one in value]
    return value
