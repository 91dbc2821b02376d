"""The first pass of a selection: which documents pass the rule and the length bounds, and in which order they come.

The order is that of XXH3-128(id, seed): it depends on the ids and the seed alone, not on shards, their order or the
machine. Of a document only numbers are kept here (52 bytes), never its text.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from megatron_ext.data.corpus import Chunk, Corpus
from megatron_ext.data.rules import Rule
from megatron_ext.errors import UserError

REASONS = ("missing_text", "score_missing", "rule_not_met", "too_short", "too_long")
"""Why the first pass rejects a document; the first that applies is counted."""
_NAMED_DUPLICATES = 5


@dataclass(frozen=True)
class Criteria:
    """What a document must be like."""

    rule: Rule | None
    min_chars: int
    max_chars: int | None


@dataclass(frozen=True)
class Candidates:
    """The documents that pass, one row each."""

    keys: np.ndarray  # uint64 [n, 2]: hash of seed and id, the order of selection
    text_hashes: np.ndarray  # uint64 [n, 2]
    num_bytes: np.ndarray  # int64 [n]
    chunk: np.ndarray  # int32 [n]: number of the chunk that holds it
    row: np.ndarray  # int64 [n]: its place in the chunk

    def __len__(self) -> int:
        return len(self.row)

    def take(self, rows: np.ndarray) -> Candidates:
        """The candidates at these places (or where a mask is true)."""
        return Candidates(*(getattr(self, field.name)[rows] for field in fields(self)))

    @staticmethod
    def concatenate(parts: Sequence[Candidates]) -> Candidates:
        """All rows of several tables, in order."""
        return Candidates(*(np.concatenate([getattr(part, field.name) for part in parts])
                            for field in fields(Candidates)))


@dataclass(frozen=True)
class ScanTask:
    """One chunk to scan, and the file for the result."""

    corpus: Corpus
    chunk: Chunk
    number: int
    criteria: Criteria
    seed: int
    path: Path


def scan_chunk(task: ScanTask) -> None:
    """Write the candidates of a chunk, and the counts of the rejected, to `task.path`."""
    found = [_no_candidates()]
    rejected = np.zeros(len(REASONS), dtype=np.int64)
    first_row = 0
    for batch in task.corpus.read(task.chunk):
        reasons = _judge(batch, task.criteria)
        rejected += np.bincount(reasons, minlength=len(REASONS) + 1)[1:]
        rows = np.flatnonzero(reasons == 0)
        kept = batch.take(pa.array(rows))
        found.append(Candidates(
            _hashes(kept.column("id"), task.seed), _hashes(kept.column("text"), 0),
            pc.binary_length(kept.column("text")).to_numpy(zero_copy_only=False).astype(np.int64),
            np.full(len(rows), task.number, dtype=np.int32), first_row + rows,
        ))
        first_row += len(batch)
    arrays = vars(Candidates.concatenate(found))
    temporary = task.path.with_name(f"{task.path.name}.{os.getpid()}.tmp")
    with open(temporary, "wb") as file:
        np.savez(file, rejected=rejected, num_documents=np.int64(first_row), **arrays)
    os.replace(temporary, task.path)


def load_scan(paths: Sequence[Path]) -> tuple[Candidates, dict[str, int], int]:
    """All candidates, the number of rejected documents by reason, and the number of documents."""
    parts, rejected, num_documents = [_no_candidates()], np.zeros(len(REASONS), dtype=np.int64), 0
    for path in paths:
        with np.load(path) as file:
            parts.append(Candidates(*(file[field.name] for field in fields(Candidates))))
            rejected += file["rejected"]
            num_documents += int(file["num_documents"])
    return Candidates.concatenate(parts), dict(zip(REASONS, map(int, rejected), strict=True)), num_documents


def in_selection_order(candidates: Candidates) -> Candidates:
    """Sort by hash of id."""
    return candidates.take(np.lexsort((candidates.keys[:, 1], candidates.keys[:, 0])))


def first_of_equal_texts(ordered: Candidates) -> np.ndarray:
    """True for each document that no earlier one equals in text, bool `[n]`."""
    hashes = ordered.text_hashes
    by_text = np.lexsort((hashes[:, 1], hashes[:, 0]))  # stable: equal texts stay in order
    is_first = np.ones(len(ordered), dtype=bool)
    is_first[by_text[1:]] = np.any(hashes[by_text[1:]] != hashes[by_text[:-1]], axis=1)
    return is_first


def refuse_duplicate_ids(ordered: Candidates, corpus: Corpus, chunks: Sequence[Chunk]) -> None:
    """Raise UserError that names ids which more than one candidate has."""
    if corpus.id_column is None and not corpus.is_documents_artifact:
        return  # ids made from texts: equal ids are equal texts, which are dropped and counted
    repeated = np.flatnonzero(np.all(ordered.keys[1:] == ordered.keys[:-1], axis=1)) + 1
    if not len(repeated):
        return
    names = []
    for place in repeated[:_NAMED_DUPLICATES]:
        chunk = chunks[ordered.chunk[place]]
        names.append(f"{_id_at(corpus, chunk, int(ordered.row[place]))!r} ({chunk.path.name})")
    more = f" and {len(repeated) - len(names):,} more" if len(repeated) > len(names) else ""
    raise UserError(f"{corpus.path}: several documents have the same id: {', '.join(names)}{more}. Ids have to be "
                    "unique; choose another id_column, or id_column=null to make ids from the texts")


def _judge(batch: pa.RecordBatch, criteria: Criteria) -> np.ndarray:
    """0 for a candidate, else 1 + the place of its reason in REASONS; int64 `[rows]`."""
    text = batch.column("text")
    missing_text = pc.is_null(text).to_numpy(zero_copy_only=False)
    chars = pc.fill_null(pc.utf8_length(text), 0).to_numpy(zero_copy_only=False)
    score_missing = rule_not_met = np.zeros(len(batch), dtype=bool)
    if criteria.rule is not None:
        scores = {name: pc.fill_null(batch.column(name), np.nan).to_numpy(zero_copy_only=False)
                  for name in criteria.rule.names}
        score_missing = np.any([np.isnan(values) for values in scores.values()], axis=0)
        rule_not_met = ~criteria.rule.holds(scores)
    too_short = chars < criteria.min_chars
    too_long = np.zeros(len(batch), dtype=bool) if criteria.max_chars is None else chars > criteria.max_chars
    reasons = [missing_text, score_missing, rule_not_met, too_short, too_long]
    return np.select(reasons, np.arange(1, len(reasons) + 1), default=0)


def _hashes(strings: pa.StringArray, seed: int) -> np.ndarray:
    """XXH3-128 of each string's UTF-8 bytes, uint64 `[n, 2]`; reads Arrow's buffers, without Python strings."""
    if not len(strings):
        return np.empty((0, 2), dtype=np.uint64)
    _, offsets_buffer, bytes_buffer = strings.buffers()
    offsets = np.frombuffer(offsets_buffer, dtype=np.int32)[strings.offset:strings.offset + len(strings) + 1].tolist()
    content = memoryview(bytes_buffer or b"")
    digests = [xxhash.xxh3_128_digest(content[start:end], seed=seed) for start, end in pairwise(offsets)]
    return np.frombuffer(b"".join(digests), dtype=">u8").astype(np.uint64).reshape(-1, 2)


def _no_candidates() -> Candidates:
    empty = np.empty((0, 2), dtype=np.uint64)
    return Candidates(empty, empty, np.empty(0, np.int64), np.empty(0, np.int32), np.empty(0, np.int64))


def _id_at(corpus: Corpus, chunk: Chunk, row: int) -> str:
    ids = (value for batch in corpus.read(chunk) for value in batch.column("id").to_pylist())
    return next(islice(ids, row, None))
