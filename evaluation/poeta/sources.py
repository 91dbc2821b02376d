"""Finding raw data: a data folder, the cache, the public source, and, only when allowed, the sample that we ship.

A data folder holds files at the paths of `tasks.yaml` and splits of hub data sets as
`hub/<data set>/<config or default>/<split>.parquet` (or `.jsonl`). The cache is such a folder, filled by downloads.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import yaml

from evaluation.poeta import download
from evaluation.poeta.raw import RawData
from evaluation.poeta.table import DATA, TaskSpec
from megatron_ext.artifacts import hash_file
from megatron_ext.errors import UserError

Origin = Literal["official", "local", "sample"]
SAMPLE = DATA / "sample"


@dataclass(frozen=True)
class Found:
    """A piece of raw data on disk."""

    path: Path
    sha256: str
    origin: Origin
    """official: its sha256 is known and fits, or it was fetched from the public source; local: from the user's data
    folder, and nothing is known about its bytes; sample: invented, stands in for the real one."""


@cache
def manifest() -> dict[str, Any]:
    """`data/sources.yaml`: where raw data is fetched from."""
    return yaml.safe_load((DATA / "sources.yaml").read_text(encoding="utf-8"))


def manifest_entry(name: str) -> dict[str, Any]:
    """What the manifest says about a piece of raw data, of its archive, or of its data set."""
    if name.startswith("hub/"):
        return manifest()["hub"][name.removeprefix("hub/").rsplit("/", 2)[0]]
    return manifest()["files"].get(name) or _archive_of(name)


def cache_folder() -> Path:
    """Where downloads are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "megatron_ext" / "poeta"


def find_raw_data(specs: Sequence[TaskSpec], folder: Path | None, *, allow_download: bool = True,
                  allow_sample: bool = False) -> dict[str, Found]:
    """Raw name -> where it is, for everything that the tasks read.

    Args:
        folder: the user's data folder, looked at first; None: the environment variable POETA_DATA, if set.
        allow_download: fetch what is neither there nor in the cache.
        allow_sample: take the invented sample for what cannot be had otherwise (exists for tweetsentbr).

    Raises UserError with the list of everything that is missing and how to get it.
    """
    folder = folder or (Path(os.environ["POETA_DATA"]) if os.environ.get("POETA_DATA") else None)
    if folder is not None and not folder.is_dir():
        raise UserError(f"data folder {folder} does not exist")
    names = list(dict.fromkeys(name for spec in specs for name in spec.raw_names()))
    found, reasons = {}, {}
    for name in names:
        try:
            found[name] = _find(name, folder, allow_download, specs)
        except download.Unavailable as error:
            if allow_sample and (SAMPLE / name).exists():
                found[name] = Found(SAMPLE / name, hash_file(SAMPLE / name), "sample")
            else:
                reasons[name] = str(error)
    if reasons:
        raise UserError(_explain_missing(specs, reasons, folder))
    return found


def open_raw_data(spec: TaskSpec, found: Mapping[str, Found]) -> RawData:
    """The raw data of one task."""
    return RawData(spec, {name: found[name].path for name in spec.raw_names()})


def least_official(origins: Iterable[Origin]) -> Origin:
    """What a set of raw data may call itself: sample beats local beats official."""
    return max(origins, key=("official", "local", "sample").index)


def _find(name: str, folder: Path | None, allow_download: bool, specs: Sequence[TaskSpec]) -> Found:
    known_sha256 = manifest()["files"].get(name, {}).get("sha256")
    if folder is not None and (path := _look_up(folder, name)):
        sha256 = hash_file(path)
        return Found(path, sha256, "official" if sha256 == known_sha256 else "local")
    if path := _look_up(cache_folder(), name):
        sha256 = hash_file(path)
        if known_sha256 in (None, sha256):
            return Found(path, sha256, "official")
        path.unlink()  # damaged since it was fetched
    if not allow_download:
        raise download.Unavailable("downloads are off")
    path = _fetch(name, known_sha256, specs)
    return Found(path, hash_file(path), "official")


def _look_up(folder: Path, name: str) -> Path | None:
    names = [f"{name}.parquet", f"{name}.jsonl"] if name.startswith("hub/") else [name]
    return next((path for candidate in names if (path := folder / candidate).is_file()), None)


def _fetch(name: str, sha256: str | None, specs: Sequence[TaskSpec]) -> Path:
    target = cache_folder() / name
    if name.startswith("hub/"):
        spec = next(spec for spec in specs if name in spec.raw_names())
        revision = manifest()["hub"][spec.hub].get("revision")
        return download.fetch_split(spec.hub, spec.hub_config, name.rsplit("/", 1)[1], revision,
                                    target.with_name(f"{target.name}.parquet"))
    if name in manifest()["files"]:
        return download.fetch_file(manifest()["files"][name]["url"], sha256, target)
    archive = _archive_of(name)
    members = [Path(other).relative_to(archive["folder"]) for spec in specs for other in spec.raw_names()
               if other.startswith(f"{archive['folder']}/") and other not in manifest()["files"]]
    download.fetch_archive(archive["url"], members, cache_folder() / archive["folder"])
    return target


def _archive_of(name: str) -> dict[str, Any]:
    return next(archive for archive in manifest()["archives"] if name.startswith(f"{archive['folder']}/"))


def _source_of(name: str) -> str:
    if name.startswith("hub/"):
        dataset, config, _ = name.removeprefix("hub/").rsplit("/", 2)
        return f"data set {dataset} ({config}) of the Hugging Face hub, splits as .parquet or .jsonl"
    return manifest()["files"].get(name, {}).get("url") or _archive_of(name)["url"]


def _explain_missing(specs: Sequence[TaskSpec], reasons: Mapping[str, str], folder: Path | None) -> str:
    tasks = [spec.name for spec in specs if set(spec.raw_names()) & set(reasons)]
    names_by_source: dict[str, list[str]] = {}
    for name in reasons:
        names_by_source.setdefault(_source_of(name), []).append(name)
    return "\n".join([
        f"raw data of {len(tasks)} task(s) is missing: {', '.join(tasks)}.",
        f"Put these files into {folder or 'a folder that you name by data=… or POETA_DATA'}, or run again where the "
        "network reaches their sources:",
        *(f"  {', '.join(names)}\n    from {source}" for source, names in names_by_source.items()),
        "They could not be fetched: " + "; ".join(dict.fromkeys(reasons.values())),
    ])
