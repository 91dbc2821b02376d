"""The pairs that are judged: a random sample of what was accepted of each style, and labelled ones."""

from __future__ import annotations

import hashlib
import heapq
import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from megatron_ext.data.documents import CHUNKS, DOCUMENTS_FOLDER, document_parts
from megatron_ext.data.rewriting.outputs import CHUNKS_FOLDER
from megatron_ext.data.rewriting.packs import JUDGE_LABELLED_FILE, pack_file
from megatron_ext.data.rewriting.pairs import LABELS, read_pairs
from megatron_ext.errors import UserError


@dataclass(frozen=True)
class Pair:
    """A source and what it was rewritten as."""

    document_id: str
    """Of the labelled set: empty."""
    chunk: int
    """Number of the chunk in its document, of the row in the labelled set."""
    style: str
    source: str
    text: str
    label: str = ""
    """Of the labelled set: good or bad."""
    kind: str = ""
    """Of the labelled set: what is wrong."""

    @property
    def place(self) -> tuple[str, str, str, int]:
        """Sort key, unique in a run."""
        return self.label, self.style, self.document_id, self.chunk


@dataclass(frozen=True)
class Sample:
    """Accepted rewrites of one style."""

    num_accepted: int
    """Chunks, of which `pairs` are a sample."""
    pairs: list[Pair]


@dataclass(frozen=True, order=True)
class _Candidate:
    rank: bytes
    part: str
    row: int


def sample_pairs(rewrites: Path, styles: list[str], size: int, seed: int) -> dict[str, Sample]:
    """Of each style, `size` of the accepted chunks that documents were made of: those with the smallest hashes of their
    keys and the seed, whatever the order of the rows and their division into files.
    """
    counts = dict.fromkeys(styles, 0)
    chosen: dict[str, list[_Candidate]] = {style: [] for style in styles}
    for part in document_parts(rewrites):
        found: dict[str, list[_Candidate]] = defaultdict(list)
        for row, style, key in _kept_chunks(rewrites, part.name):
            found[style].append(_Candidate(_rank(seed, key), part.name, row))
        for style in styles:
            counts[style] += len(found[style])
            chosen[style] = heapq.nsmallest(size, [*chosen[style], *found[style]])
    pairs = _read(rewrites, [one for candidates in chosen.values() for one in candidates])
    return {style: Sample(counts[style], [pairs[one] for one in chosen[style]]) for style in styles}


def labelled_pairs(language: str, file: Path | None = None) -> list[Pair]:
    """The pairs of a file, or of the language's own set.

    Raises UserError when it cannot be read or a row lacks source, text, style, or a label that is good or bad.
    """
    file = file or pack_file(language, JUDGE_LABELLED_FILE)
    rows = list(enumerate(read_pairs(file), start=1))
    wrong = [str(number) for number, row in rows if row.get("label") not in LABELS]
    if wrong:
        raise UserError(f"{file}: column label must be {' or '.join(LABELS)}; it is neither in row "
                        f"{', '.join(wrong[:5])}")
    return [Pair("", number, row["style"], row["source"], row["text"], label=row["label"],
                 kind=str(row.get("kind") or row["label"])) for number, row in rows]


def _kept_chunks(rewrites: Path, part: str) -> Iterator[tuple[int, str, str]]:
    """(row, style, key) of the accepted chunks of a window that stand in a document."""
    documents = pq.read_table(rewrites / DOCUMENTS_FOLDER / part, columns=["document_id", "style", CHUNKS],
                              use_threads=False).to_pylist()
    kept = {(row["document_id"], row["style"], number) for row in documents for number in row[CHUNKS]}
    chunks = pq.read_table(rewrites / CHUNKS_FOLDER / part, columns=["document_id", "style", "chunk", "status"],
                           use_threads=False).to_pylist()
    for number, row in enumerate(chunks):
        key = (row["document_id"], row["style"], row["chunk"])
        if row["status"] == "accepted" and key in kept:
            yield number, row["style"], json.dumps(key)


def _rank(seed: int, key: str) -> bytes:
    return hashlib.sha256(f"{seed} {key}".encode()).digest()


def _read(rewrites: Path, candidates: list[_Candidate]) -> dict[_Candidate, Pair]:
    """The texts of chosen rows, file by file."""
    by_part: dict[str, list[_Candidate]] = defaultdict(list)
    for one in candidates:
        by_part[one.part].append(one)
    names = ["document_id", "chunk", "style", "source", "text"]
    pairs: dict[_Candidate, Pair] = {}
    for part, chosen in by_part.items():
        table = pq.read_table(rewrites / CHUNKS_FOLDER / part, columns=names, use_threads=False)
        rows = table.take([one.row for one in chosen]).to_pylist()
        pairs |= {one: Pair(**row) for one, row in zip(chosen, rows, strict=True)}
    return pairs
