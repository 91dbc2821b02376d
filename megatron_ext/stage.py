"""What all stages share: their settings, and the making of an artifact from them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from pydantic import ValidationError

from megatron_ext.artifacts import Artifact, produce
from megatron_ext.identity import WATCHING, of_roles, with_roles
from megatron_ext.settings import Settings


class StageSettings(Settings):
    """Base of the settings of a stage."""

    restart: Annotated[bool, WATCHING] = False
    """Throw away what another request has left in the output folder, and begin anew."""


def make_artifact(
    output: Path,
    *,
    kind: str,
    settings: StageSettings,
    inputs: Mapping[str, Path | str],
    make: Callable[[Path], Mapping[str, Any]],
    more: Mapping[str, Any] | None = None,
    beside: Callable[[str], bool] = lambda name: False,
    produce: Callable[..., Any] = produce,
) -> Artifact:
    """`produce` for a stage: its request is its deciding settings, and `more` that follows from them and decides."""
    of_older = partial(as_today, type(settings), more=frozenset(more or {}))
    return produce(output, kind=kind, settings=request_settings(settings, more), inputs=inputs, make=make,
                   beside=beside, restart=settings.restart, of_older=of_older)


def request_settings(settings: Settings, more: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The settings of a request."""
    return {**with_roles(settings), **(more or {})}


def as_today(cls: type[Settings], settings: Mapping[str, Any], more: Collection[str] = ()) -> dict[str, Any]:
    """An older version's settings of a request as today's: what decides no more is left out, what is new as by default.

    Args:
        more: keys that follow from settings and places, as `make_artifact` got them.
    """
    return {**_deciding(cls, settings),
            **{key: value for key, value in settings.items() if key in more or key not in cls.model_fields}}


def _deciding(cls: type[Settings], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The deciding settings in the form that today's class gives them, as far as it takes them."""
    places = {name: "." for name, field in cls.model_fields.items() if field.is_required() and name not in settings}
    values = places | {key: value for key, value in settings.items() if key in cls.model_fields}
    try:
        return with_roles(cls.model_validate(values))
    except ValidationError:  # what is checked against the places cannot be, without them
        unused = cls.model_construct(**values).unused_sections
        return {key: value for key, value in of_roles(cls, settings, defaults=True).items() if key not in unused}
