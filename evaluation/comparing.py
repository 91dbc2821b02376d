"""What the programs that compare conditions share: names that they know, their inputs, what they tell at the end."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any


def refuse_unknown_names(key: str, models: Mapping[str, Sequence[Path]], baseline: str,
                         interactions: Mapping[str, Sequence[str]], others: Sequence[str] = ()) -> None:
    """Raise ValueError that lists conditions without a folder, names that are no condition, and other problems.

    Args:
        key: the setting that holds `models`.
        models: condition -> folders, one a seed.
        others: problems that were found besides.
    """
    known = ", ".join(models)
    problems = [f"{key}.{name}: names no folder" for name, folders in models.items() if not folders]
    named = {"baseline": [baseline], **{f"interactions.{name}": four for name, four in interactions.items()}}
    problems += [f"{where}: {name!r} is no condition ({known})"
                 for where, names in named.items() for name in names if name not in models]
    problems += [f"interactions.{name}: needs four conditions [a, b, c, d] for (a - b) - (c - d)"
                 for name, four in interactions.items() if len(set(four)) != 4]
    if problems := [*problems, *others]:
        raise ValueError("; ".join(problems))


def numbered(models: Mapping[str, Sequence[Path]]) -> dict[str, Path]:
    """`condition/number of the seed` -> folder, as artifacts name their inputs."""
    return {f"{name}/{position}": folder for name, folders in models.items() for position, folder in enumerate(folders)}


def with_baseline(parts: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """The differences from the baseline, and the interactions, of several parts of a comparison."""
    yield from (one for part in parts for one in [*part["differences"], *part["interactions"]]
                if one["family"] in ("baseline", "interactions"))


def tell(contrasts: Iterable[Mapping[str, Any]], caveats: Iterable[str]) -> None:
    """Print verdicts and what limits them."""
    for one in contrasts:
        print(one["verdict"])
    for caveat in caveats:
        print(f"note: {caveat}")
