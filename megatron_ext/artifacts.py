"""Artifacts: the folders through which stages talk.

An artifact is a folder with data files and one `manifest.json`. It is made in `<folder>.partial` and renamed when
it is complete, so a folder with a manifest is whole and any other folder is not an artifact. The manifest holds the
*request* (kind, settings, content hashes of the inputs: what was asked for), the counts and the hash of every file.
Asking again for a finished request does nothing; asking for an interrupted one goes on in the same `.partial` folder;
what another request left is never emptied without a word.

An artifact's *content* is its payload: two undisturbed runs of one request on one machine have the same content hash.
Files that tell of the making (times, speeds, journals) lie beside it: hashed and checked as all others, no content.

    def make(folder: Path) -> dict[str, Any]:      # writes files into `folder`, returns the counts
        ...
    artifact = produce(output, kind="selection", settings={...}, inputs={"corpus": path}, make=make)
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_ext.contents import BESIDE, changed_files, map_files, note_hashes, plain_content_hash
from megatron_ext.contents import hash_json as hash_json
from megatron_ext.errors import UserError
from megatron_ext.files import is_temporary, read_json, remove_temporaries, write_json
from megatron_ext.files import write_text as write_text
from megatron_ext.hashing import hash_file, hash_new_file
from megatron_ext.lease import LEASE, lease
from megatron_ext.manifest import MANIFEST, VERSION, is_current, manifest_problem, read_manifest, write_manifest
from megatron_ext.redaction import redact

_REQUEST = ".request.json"
_PARTIAL = ".partial"
ASIDE = "aside"
"""Name of folders for what is neither used nor thrown away; no part of any artifact."""
Reader = Callable[[Mapping[str, Any]], Mapping[str, Any]]
_MOST_TOLD = 20


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
        """Open a finished artifact; every file must be there and unchanged, as far as sizes and stamps tell.

        Raises UserError when the folder is no artifact, is of another kind, or lacks a file, or when one was changed.
        """
        artifact = cls.of_manifest(path)
        artifact._refuse_changes(unknown_too=False)
        if kind is not None and artifact.kind != kind:
            raise UserError(f"{path} is an artifact of kind {artifact.kind!r}; {kind!r} is needed here")
        return artifact

    @classmethod
    def of_manifest(cls, path: Path | str) -> Artifact:
        """An artifact as its manifest tells, without a look at its files. Raises UserError when there is none."""
        path = Path(path)
        manifest = read_manifest(path)
        if manifest is None:
            unfinished = " (it is unfinished: run its stage again)" if partial_folder(path).exists() else ""
            raise UserError(f"{path} is not a finished artifact: no {MANIFEST} of one there{unfinished}")
        return cls(path, manifest)

    def check(self) -> Artifact:
        """Read every file that this machine has not yet read in its present state; returns the artifact itself.

        For those who are about to use it: a tree that was copied or restored here may have changed on the way.

        Raises UserError that names what differs from the manifest.
        """
        self._refuse_changes(unknown_too=True)
        return self

    def verify(self) -> list[str]:
        """Read every file again, those of artifacts inside too; one line for each that differs (none: all is well)."""
        files = self._expected_files()
        present = [name for name in files if (self.path / name).is_file()]
        problems = [f"{self.path / name}: missing" for name in files if name not in present]
        digests = map_files(hash_file, [self.path / name for name in present])
        problems += [f"{self.path / name}: bytes differ from the manifest's sha256 {files[name]['sha256'][:12]}"
                     for name, digest in zip(present, digests, strict=True) if digest != files[name]["sha256"]]
        if problem := manifest_problem(self.path, self.manifest):
            problems.append(problem)
        for inner in self._inner_artifacts():
            problems += inner.verify()
        return problems

    def _inner_artifacts(self) -> Iterator[Artifact]:
        for name in self._expected_files():
            folder = (self.path / name).parent
            if Path(name).name == MANIFEST and (manifest := read_manifest(folder)):
                yield Artifact(folder, manifest)

    def _expected_files(self) -> dict[str, dict[str, Any]]:
        """The files that must be there: an artifact inside that is no payload (an old checkpoint) may be gone."""
        files = self.manifest["files"]
        gone = {name for name, entry in files.items() if Path(name).name == MANIFEST
                and (BESIDE in entry or not is_current(self.manifest)) and not (self.path / name).exists()}
        return {name: entry for name, entry in files.items() if name not in gone} if gone else files

    def _refuse_changes(self, unknown_too: bool) -> None:
        problem = manifest_problem(self.path, self.manifest)
        problems = [problem] if problem else changed_files(self.path, self._expected_files(), unknown_too)
        if problems:
            more = f"; and {len(problems) - _MOST_TOLD} more" if len(problems) > _MOST_TOLD else ""
            raise UserError(f"{'; '.join(problems[:_MOST_TOLD])}{more}: the artifact was damaged after it was made; "
                            f"delete {self.path} and run its stage again")


def produce(
    output: Path | str,
    *,
    kind: str,
    settings: Mapping[str, Any],
    inputs: Mapping[str, Path | str],
    make: Callable[[Path], Mapping[str, Any]],
    beside: Callable[[str], bool] = lambda name: False,
    restart: bool = False,
    of_older: Reader = dict,
) -> Artifact:
    """Return the artifact `output`, making it when it is not there.

    Args:
        kind: the kind of artifact, e.g. "selection".
        settings: JSON-able; everything that decides the bytes of the output, without paths.
        inputs: name -> artifact, file or folder that is read; only its content enters the request.
        make: writes into the folder it is given and returns the counts. After an interruption it finds there what it
            had written, and goes on.
        beside: whether a file, by its name below the folder, is no payload.
        restart: throw away what another request has left in `output`, or unfinished beside it.
        of_older: an older version's settings as today's, for the comparison with `settings`.

    Raises UserError when `output` holds the answer to another request, when another process is making it, or when an
    input was changed after it was made.
    """
    output = Path(output)
    output = output.resolve() if output.is_symlink() else output
    request = {
        "kind": kind,
        "settings": redact(json.loads(json.dumps(settings))),
        "inputs": {name: reference(path) for name, path in inputs.items()},
    }
    if made := _made_before(output, request, restart, of_older):
        return made
    check_inputs(inputs.values())
    output.parent.mkdir(parents=True, exist_ok=True)
    with lease(output.with_name(output.name + LEASE), output):
        made = _made_before(output, request, restart, of_older)  # it may have been, while the lease was another's
        return made or _make(output, request, make, beside, restart, of_older)


def publish_in_place(folder: Path, *, kind: str, settings: Mapping[str, Any], inputs: Mapping[str, Path | str],
                     counts: Mapping[str, Any], beside: Callable[[str], bool] = lambda name: False) -> Artifact:
    """Make an artifact of a folder that had to grow where it stands (a training run): write its manifest, last."""
    request = {"kind": kind, "settings": dict(settings), "inputs": {k: reference(v) for k, v in inputs.items()}}
    return _opened(folder, _describe(folder, request, counts, beside, seconds=None))


def check_inputs(places: Iterable[Path | str]) -> None:
    """Read, once for each machine and state, the files of those places that are artifacts.

    Raises UserError that names each file that was changed.
    """
    for place in map(Path, places):
        if is_finished(place):
            Artifact.of_manifest(place).check()


def delete_artifact(folder: Path) -> None:
    """Delete an artifact, its manifest first: what is left of it at any moment is not taken for a whole one."""
    (folder / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(folder)


def partial_folder(output: Path) -> Path:
    """Where an unfinished `output` is kept."""
    return output.with_name(output.name + _PARTIAL)


def is_finished(output: Path) -> bool:
    """Whether `output` is a finished artifact. Raises UserError when its manifest cannot be read any more."""
    return read_manifest(output) is not None


def reference(path: Path | str) -> dict[str, str]:
    """The identity of an input: an artifact's kind and content hash, or the content hash of a plain file or folder."""
    path = Path(path)
    if is_finished(path):
        artifact = Artifact.open(path)
        return {"kind": artifact.kind, "content_hash": artifact.content_hash}
    if path.is_dir() or path.is_file():
        return {"kind": "folder" if path.is_dir() else "file", "content_hash": plain_content_hash(path)}
    unfinished = " (an unfinished one is there: run its stage again)" if partial_folder(path).exists() else ""
    raise UserError(f"input {path} does not exist{unfinished}")


def differences(before: Any, now: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(dotted key, value before, value now) of every leaf in which two nested mappings differ."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for name in sorted({*before, *now}):
            yield from differences(before.get(name), now.get(name), f"{key}.{name}" if key else name)
    elif before != now:
        yield key, before, now


def request_changes(manifest: Mapping[str, Any], asked: Mapping[str, Any], of_older: Reader = dict) -> list[str]:
    """One line for each key in which a manifest's request differs from what is asked for (none: they are the same)."""
    made = {**manifest["request"], "settings": redact(manifest["request"]["settings"])}
    if not is_current(manifest):
        made["settings"] = of_older(made["settings"])
    return [f"{key}: made with {before!r}, asked for {now!r}" for key, before, now in differences(made, asked)]


def _made_before(output: Path, request: Mapping[str, Any], restart: bool, of_older: Reader) -> Artifact | None:
    """The finished artifact if it answers the request; None if it has to be made. Raises UserError when it cannot."""
    if not is_finished(output):
        if output.exists() and any(output.iterdir()):
            raise UserError(f"{output} exists and is not an artifact; choose another output folder")
        return None
    artifact = Artifact.open(output)
    changes = request_changes(artifact.manifest, request, of_older)
    if changes and not restart:
        raise UserError(f"{output} was made from another request ({'; '.join(changes)}); choose another output folder, "
                        "or add restart=true to throw it away and make it again")
    return None if changes else artifact


def _make(output: Path, request: Mapping[str, Any], make: Callable[[Path], Mapping[str, Any]],
          beside: Callable[[str], bool], restart: bool, of_older: Reader) -> Artifact:
    if is_finished(output):
        delete_artifact(output)
    partial = partial_folder(output)
    partial.mkdir(exist_ok=True)
    remove_temporaries(partial)
    _take_over(partial, request, restart, of_older)
    started = time.time()
    counts = make(partial)
    (partial / _REQUEST).unlink()
    hashed_ns = _describe(partial, request, counts, beside, seconds=time.time() - started)
    if output.exists():
        output.rmdir()
    os.replace(partial, output)
    return _opened(output, hashed_ns)


def _take_over(partial: Path, request: Mapping[str, Any], restart: bool, of_older: Reader) -> None:
    """Go on with what is in the folder if it was made for this request; note the request.

    Raises UserError when it was made for another.
    """
    noted = read_json(partial / _REQUEST)
    if noted is not None:
        left = {"version": noted.pop("version", 1), "request": noted}
        changes = request_changes(left, request, of_older)
        if changes and not restart:
            raise UserError(f"{partial} holds unfinished work of another request ({'; '.join(changes)}); ask for that "
                            "one to go on with it, or add restart=true to throw the work away")
        if not changes:
            return
    _empty_folder(partial)
    write_json(partial / _REQUEST, {**request, "version": VERSION})


def _describe(folder: Path, request: Mapping[str, Any], counts: Mapping[str, Any], beside: Callable[[str], bool],
              seconds: float | None) -> int:
    """Write the manifest of a complete folder; returns when (nanoseconds since 1970) its files began to be hashed."""
    remove_temporaries(folder)
    hashed_ns = time.time_ns()
    names = sorted(_published_files(folder))
    digests = map_files(hash_new_file, [folder / name for name in names])
    files = {name: _entry(folder / name, digest, beside(name)) for name, digest in zip(names, digests, strict=True)}
    write_manifest(folder, request, counts, files, seconds)
    return hashed_ns


def _entry(path: Path, digest: str, is_beside: bool) -> dict[str, Any]:
    entry: dict[str, Any] = {"bytes": path.stat().st_size, "sha256": digest}
    if path.name == MANIFEST and (manifest := read_manifest(path.parent)):
        entry["content_hash"] = manifest["content_hash"]  # the manifest itself tells of its making, too
    return {**entry, BESIDE: True} if is_beside else entry


def _published_files(folder: Path) -> Iterator[str]:
    """Names of all files below `folder` but the bookkeeping ones, and what is unfinished or was set aside.

    An artifact inside the folder (a checkpoint of a run) counts as its manifest, which holds its own hashes.
    """
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name != ASIDE and not name.endswith(_PARTIAL)]
        place = Path(parent)
        if place == folder:
            names = [name for name in names if name not in (MANIFEST, _REQUEST, LEASE)]
        elif read_manifest(place):
            folders.clear()
            names = [MANIFEST]
        yield from (str((place / name).relative_to(folder)) for name in names if not is_temporary(name))


def _opened(folder: Path, hashed_ns: int) -> Artifact:
    """A new artifact; what its files are is noted, so that later changes are seen."""
    artifact = Artifact.of_manifest(folder)
    note_hashes(folder, artifact.manifest["files"], hashed_ns)
    return artifact


def _empty_folder(folder: Path) -> None:
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
