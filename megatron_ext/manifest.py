"""The file that makes a folder an artifact: what was asked for, what it holds, who made it."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import time
from collections.abc import Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from megatron_ext.contents import content_hash, hash_json
from megatron_ext.errors import UserError
from megatron_ext.files import finite, write_json
from megatron_ext.redaction import redact, redact_arguments

MANIFEST = "manifest.json"
VERSION = 2
"""Of what is written. Version 1 (no version in the manifest) has no seal, and all files were content."""
_SEAL = "manifest_hash"  # of all else in the manifest
_FIELDS = {"request", "counts", "files", "content_hash", "made_by"}
_ENOUGH_FIELDS = 3
_RECORDED_PACKAGES = ("torch", "megatron-core", "transformers", "tokenizers", "vllm", "lm-eval", "pyarrow")


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of an artifact; None where there is none, or another program's file of that name.

    Raises UserError when it is one of ours and cannot be read any more.
    """
    try:
        text = (folder / MANIFEST).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        manifest = json.loads(text)
    except ValueError as error:
        if sum(f'"{field}"'.encode() in text for field in _FIELDS) < _ENOUGH_FIELDS:
            return None
        raise UserError(f"{folder / MANIFEST} was damaged ({error}); delete {folder} and run its stage again") from None
    is_ours = isinstance(manifest, dict) and len(_FIELDS & manifest.keys()) >= _ENOUGH_FIELDS
    return manifest if is_ours else None


def is_current(manifest: Mapping[str, Any]) -> bool:
    """Whether a manifest is of the version that is written today."""
    return manifest.get("version", 1) == VERSION


def manifest_problem(folder: Path, manifest: Mapping[str, Any]) -> str | None:
    """What is wrong with a manifest of ours in itself; None when nothing is."""
    if missing := sorted({*_FIELDS, *([_SEAL] if is_current(manifest) else [])} - manifest.keys()):
        return f"{folder / MANIFEST} lacks {', '.join(missing)}"
    if content_hash(manifest["files"]) != manifest["content_hash"]:
        return f"{folder / MANIFEST}: its content_hash does not follow from its list of files"
    if is_current(manifest) and _seal(manifest) != manifest[_SEAL]:
        return f"{folder / MANIFEST}: its {_SEAL} does not follow from what it says"
    return None


def write_manifest(folder: Path, request: Mapping[str, Any], counts: Mapping[str, Any],
                   files: Mapping[str, Mapping[str, Any]], seconds: float | None) -> None:
    """Write the manifest of a folder that holds these files, each with its `bytes` and `sha256`."""
    manifest = {
        "version": VERSION,
        "request": {**request, "settings": redact(request["settings"])},
        "counts": redact(dict(counts)),
        "files": dict(files),
        "content_hash": content_hash(files),
        "made_by": {
            "program": " ".join(redact_arguments([Path(sys.argv[0]).name, *sys.argv[1:]])),
            "git": _git_version(),
            "python": platform.python_version(),
            "packages": _package_versions(),
            "seconds": seconds and round(seconds, 1),
            "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        },
    }
    manifest = json.loads(json.dumps(finite(manifest)))  # as it will be read
    write_json(folder / MANIFEST, {**manifest, _SEAL: _seal(manifest)})


def _seal(manifest: Mapping[str, Any]) -> str:
    return hash_json({key: value for key, value in manifest.items() if key != _SEAL})


@cache
def _git_version() -> str:
    """Commit of the code that runs, with `-dirty` when it has uncommitted changes."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


@cache
def _package_versions() -> dict[str, str]:
    versions = {}
    for name in _RECORDED_PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions
