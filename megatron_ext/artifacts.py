"""Artifacts: the folders through which stages talk.

An artifact is a folder with data files and one `manifest.json`. It is made in `<folder>.partial` and renamed when
it is complete, so a folder with a manifest is whole and any other folder is not an artifact. The manifest holds the
*request* (kind, settings, content hashes of the inputs: what was asked for), the counts and the hash of every file.
Asking again for a finished request does nothing; asking for an interrupted one goes on in the same `.partial` folder.

    def make(folder: Path) -> dict[str, Any]:      # writes files into `folder`, returns the counts
        ...
    artifact = produce(output, kind="selection", settings={...}, inputs={"corpus": path}, make=make)
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from megatron_ext.errors import UserError
from megatron_ext.hashing import hash_file

MANIFEST = "manifest.json"
_REQUEST = ".request.json"
_LOCK = ".lock"
_HASH_CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "megatron_ext" / "sha256.json"
_RECORDED_PACKAGES = ("torch", "megatron-core", "transformers", "tokenizers", "vllm", "lm-eval", "pyarrow")


@dataclass(frozen=True)
class Artifact:
    """A finished artifact: its folder and its manifest."""

    path: Path
    manifest: dict[str, Any]

    @property
    def kind(self) -> str:
        """What sort of artifact this is, e.g. "selection"."""
        return self.manifest["request"]["kind"]

    @property
    def settings(self) -> dict[str, Any]:
        """The settings it was made with."""
        return self.manifest["request"]["settings"]

    @property
    def counts(self) -> dict[str, Any]:
        """What its stage counted (documents, tokens, bytes, …)."""
        return self.manifest["counts"]

    @property
    def content_hash(self) -> str:
        """sha256 over the names and hashes of all files: equal bytes give an equal hash on any machine."""
        return self.manifest["content_hash"]

    @classmethod
    def open(cls, path: Path | str, kind: str | None = None) -> Artifact:
        """Open a finished artifact; every file must be there with its recorded size.

        Raises UserError when the folder is no artifact, is of another kind, or lacks a file.
        """
        path = Path(path)
        manifest = _read_json(path / MANIFEST)
        if manifest is None:
            unfinished = " (it is unfinished: run its stage again)" if partial_folder(path).exists() else ""
            raise UserError(f"{path} is not a finished artifact: no {MANIFEST} there{unfinished}")
        artifact = cls(path, manifest)
        if kind is not None and artifact.kind != kind:
            raise UserError(f"{path} is an artifact of kind {artifact.kind!r}; {kind!r} is needed here")
        for name, entry in manifest["files"].items():
            file = path / name
            size = file.stat().st_size if file.exists() else None
            if size != entry["bytes"]:
                found = "is missing" if size is None else f"has {size:,} bytes instead of {entry['bytes']:,}"
                raise UserError(f"{file} {found}: the artifact was damaged after it was made; delete {path} and run "
                                "its stage again")
        return artifact

    def verify(self) -> list[str]:
        """Recompute every hash; return one line for each file that differs (an empty list: all is well)."""
        problems = []
        for name, entry in self.manifest["files"].items():
            file = self.path / name
            if not file.exists():
                problems.append(f"{file}: missing")
            elif hash_file(file) != entry["sha256"]:
                problems.append(f"{file}: bytes differ from the manifest's sha256 {entry['sha256'][:12]}")
        if content_hash(self.manifest["files"]) != self.content_hash:
            problems.append(f"{self.path / MANIFEST}: its content_hash does not follow from its list of files")
        return problems


def produce(
    output: Path | str,
    *,
    kind: str,
    settings: Mapping[str, Any],
    inputs: Mapping[str, Path | str],
    make: Callable[[Path], Mapping[str, Any]],
) -> Artifact:
    """Return the artifact `output`, making it when it is not there.

    Args:
        kind: the kind of artifact, e.g. "selection".
        settings: JSON-able; everything that decides the bytes of the output, without paths.
        inputs: name -> artifact, file or folder that is read; only its content enters the request.
        make: writes into the folder it is given and returns the counts. After an interruption it finds there what it
            had written, and goes on.

    Raises UserError when `output` holds the answer to another request, or another process is making it.
    """
    output = Path(output)
    request = {
        "kind": kind,
        "settings": json.loads(json.dumps(settings)),
        "inputs": {name: reference(path) for name, path in inputs.items()},
    }
    if (output / MANIFEST).exists():
        artifact = Artifact.open(output)
        _refuse_other_request(output, artifact.manifest["request"], request)
        return artifact
    if output.exists() and any(output.iterdir()):
        raise UserError(f"{output} exists and is not an artifact; choose another output folder")

    partial = partial_folder(output)
    partial.mkdir(parents=True, exist_ok=True)
    with _locked(partial / _LOCK):
        if _read_json(partial / _REQUEST) != request:
            _empty_folder(partial, keep=_LOCK)  # left by another request: nothing in it can be used
            write_json(partial / _REQUEST, request)
        started = time.time()
        counts = make(partial)
        (partial / _REQUEST).unlink()
        _write_manifest(partial, request, counts, seconds=time.time() - started)
        if output.exists():
            output.rmdir()
        os.replace(partial, output)
        (output / _LOCK).unlink()
    return Artifact.open(output)


def publish_in_place(folder: Path, *, kind: str, settings: Mapping[str, Any], inputs: Mapping[str, Path | str],
                     counts: Mapping[str, Any]) -> Artifact:
    """Make an artifact of a folder that had to grow where it stands (a training run): write its manifest, last."""
    request = {"kind": kind, "settings": dict(settings), "inputs": {k: reference(v) for k, v in inputs.items()}}
    _write_manifest(folder, request, counts, seconds=None)
    return Artifact.open(folder)


def delete_artifact(folder: Path) -> None:
    """Delete an artifact, its manifest first: what is left of it at any moment is not taken for a whole one."""
    (folder / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(folder)


def partial_folder(output: Path) -> Path:
    """Where an unfinished `output` is kept."""
    return output.with_name(output.name + ".partial")


def is_finished(output: Path) -> bool:
    """Whether `output` is a finished artifact."""
    return (output / MANIFEST).exists()


def reference(path: Path | str) -> dict[str, str]:
    """The identity of an input: an artifact's kind and content hash, or the content hash of a plain file or folder."""
    path = Path(path)
    if (path / MANIFEST).exists():
        artifact = Artifact.open(path)
        return {"kind": artifact.kind, "content_hash": artifact.content_hash}
    if path.is_dir():
        return {"kind": "folder", "content_hash": content_hash(_hash_folder(path))}
    if path.is_file():
        return {"kind": "file", "content_hash": _hash_files_cached([path])[0]}
    unfinished = " (an unfinished one is there: run its stage again)" if partial_folder(path).exists() else ""
    raise UserError(f"input {path} does not exist{unfinished}")


def content_hash(files: Mapping[str, Mapping[str, Any]]) -> str:
    """sha256 of the sorted `name sha256` lines of a manifest's `files`."""
    lines = "".join(f"{name} {files[name]['sha256']}\n" for name in sorted(files))
    return hashlib.sha256(lines.encode()).hexdigest()


def hash_json(value: Any) -> str:
    """sha256 of a JSON-able value in canonical form."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically and durably: the file is there whole or not at all."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, sort_keys=True) + "\n")


def write_text(path: Path, text: str, temporary_suffix: str = ".tmp") -> None:
    """Write a text file atomically and durably; several processes that write one file need suffixes of their own."""
    temporary = path.with_name(path.name + temporary_suffix)
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def differences(before: Any, now: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(dotted key, value before, value now) of every leaf in which two nested mappings differ."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for name in sorted({*before, *now}):
            yield from differences(before.get(name), now.get(name), f"{key}.{name}" if key else name)
    elif before != now:
        yield key, before, now


def _write_manifest(folder: Path, request: Mapping[str, Any], counts: Mapping[str, Any],
                    seconds: float | None) -> None:
    files = _hash_folder(folder, cached=False)
    manifest = {
        "request": request,
        "counts": dict(counts),
        "files": files,
        "content_hash": content_hash(files),
        "made_by": {
            "program": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
            "git": _git_version(),
            "python": platform.python_version(),
            "packages": _package_versions(),
            "seconds": seconds and round(seconds, 1),
            "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        },
    }
    write_json(folder / MANIFEST, manifest)


def _refuse_other_request(output: Path, made: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    changes = [
        f"{key}: made with {made_value!r}, asked for {asked_value!r}"
        for key, made_value, asked_value in differences(made, asked)
    ]
    if changes:
        raise UserError(f"{output} was made from another request ({'; '.join(changes)}); choose another output "
                        "folder, or delete this one to make it again")


def _hash_folder(folder: Path, cached: bool = True) -> dict[str, dict[str, Any]]:
    """name -> {bytes, sha256} of all files below `folder` but the bookkeeping ones.

    An artifact inside the folder (a checkpoint of a run) counts as its manifest, which holds its own hashes.
    """
    paths = []
    for parent, folders, names in os.walk(folder):
        place = Path(parent)
        if place != folder and MANIFEST in names:
            folders.clear()
            names = [MANIFEST]
        elif place == folder:
            names = [name for name in names if name not in (MANIFEST, _LOCK, _REQUEST)]
        paths += [place / name for name in names]
    paths.sort()
    hashes = _hash_files_cached(paths) if cached else _hash_files(paths)
    return {
        str(path.relative_to(folder)): {"bytes": path.stat().st_size, "sha256": digest}
        for path, digest in zip(paths, hashes, strict=True)
    }


def _hash_files(paths: Sequence[Path]) -> list[str]:
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:  # hashing lets other threads run
        return list(pool.map(hash_file, paths))


def _hash_files_cached(paths: Sequence[Path]) -> list[str]:
    """sha256 of external files; one whose path, size and modification time are known is not read again."""
    paths = [path.resolve() for path in paths]
    stamps = {path: _stamp(path) for path in paths}
    known = _read_json(_HASH_CACHE) or {}
    unknown = [path for path in paths if not _is_known(known.get(str(path)), stamps[path])]
    if unknown:
        hashed_ns = time.time_ns()
        known |= {str(path): {"stamp": stamps[path], "hashed_ns": hashed_ns, "sha256": digest}
                  for path, digest in zip(unknown, _hash_files(unknown), strict=True)}
        _HASH_CACHE.parent.mkdir(parents=True, exist_ok=True)
        write_text(_HASH_CACHE, json.dumps(known), temporary_suffix=f".{os.getpid()}.tmp")
    return [known[str(path)]["sha256"] for path in paths]


def _stamp(path: Path) -> list[int]:
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ino]


def _is_known(entry: Mapping[str, Any] | None, stamp: list[int]) -> bool:
    # A file changed within the clock's grain of its last hashing could keep its stamp: never trust a fresh one.
    return entry is not None and entry["stamp"] == stamp and entry["hashed_ns"] - stamp[1] > 2_000_000_000


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); delete {path.parent} and run its stage again") from error


def _empty_folder(folder: Path, keep: str) -> None:
    for entry in folder.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)
        elif entry.name != keep:
            entry.unlink()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{path.parent} is being made by another process; wait for it or stop it") from None
        yield


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
