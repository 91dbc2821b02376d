"""Fetching raw data from its public sources: each file appears whole, with the right bytes, or not at all."""

from __future__ import annotations

import os
import shutil
import tarfile
import tempfile
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from collections.abc import Iterable
from pathlib import Path

from megatron_ext.artifacts import hash_file
from megatron_ext.files import replacing

TIMEOUT_SECONDS = 5.0
_unreachable_hosts: set[str] = set()


class Unavailable(Exception):
    """A source cannot be reached or does not have what is asked for; the message says why."""


def fetch_file(url: str, sha256: str | None, target: Path) -> Path:
    """Download a file to `target`. A sha256 that does not fit makes it unavailable."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with replacing(target) as temporary:
        with _open(url) as response, open(temporary, "wb") as file:
            shutil.copyfileobj(response, file)
        found = hash_file(temporary)
        if sha256 not in (None, found):
            raise Unavailable(f"{url} has other bytes than expected (sha256 {found[:12]}… instead of {sha256[:12]}…)")
    return target


def fetch_archive(url: str, members: Iterable[Path], folder: Path) -> None:
    """Download a zip or tar file and unpack the named members below `folder`, each of them atomically."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        archive = fetch_file(url, None, Path(scratch) / Path(urllib.parse.urlparse(url).path).name)
        unpacked = Path(scratch) / "unpacked"
        try:
            _unpack(archive, {str(member) for member in members}, unpacked)
        except (zipfile.BadZipFile, tarfile.TarError, KeyError) as error:
            raise Unavailable(f"{url} is no archive of what is needed: {error}") from None
        for file in sorted(path for path in unpacked.rglob("*") if path.is_file()):
            target = folder / file.relative_to(unpacked)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(file, target)


def fetch_split(dataset: str, config: str | None, split: str, revision: str | None, target: Path) -> Path:
    """Save a split of a data set of the Hugging Face hub as Parquet, rows in their order."""
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    if not Path(dataset).is_dir():
        _open(f"{endpoint}/api/datasets/{dataset}").close()  # the hub's own client takes minutes to give up
    import datasets

    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with replacing(target) as temporary:
            datasets.load_dataset(dataset, config, split=split, revision=revision).to_parquet(temporary)
    except (OSError, ValueError, RuntimeError) as error:
        raise Unavailable(f"data set {dataset}, split {split}: {error}") from None
    return target


def _open(url: str) -> urllib.request.addinfourl:
    host = urllib.parse.urlparse(url).netloc
    if host in _unreachable_hosts:
        raise Unavailable(f"{host} cannot be reached")
    try:
        return urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        raise Unavailable(f"{url}: {error.code} {error.reason}") from None
    except OSError as error:
        _unreachable_hosts.add(host)
        raise Unavailable(f"{host} cannot be reached: {getattr(error, 'reason', error)}") from None


def _unpack(archive: Path, members: Iterable[str], folder: Path) -> None:
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as content:
            content.extractall(folder, sorted(members))
    else:
        with tarfile.open(archive) as content:
            content.extractall(folder, [content.getmember(name) for name in sorted(members)], filter="data")
