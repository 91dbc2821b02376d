"""What is kept of a shard from one selection to the next: its documents' numbers, and what was measured of them.

It lies under the hash of the shard's bytes. So a corpus may grow, lose and exchange shards, and rules and budgets may
change: what is known is not read or measured again.

An index holds of each document of a chunk, whether it was selected or not, the scores, the hashes that order and
compare it, and the length of its text; a file of measures the tokens (and test items) of those that were counted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from megatron_ext.data.hashing import hash_strings
from megatron_ext.data.selection.contamination import Hits
from megatron_ext.data.selection.judging import PASSED, REASONS, Criteria, judge_lengths, judge_scores
from megatron_ext.data.selection.measures import Measured
from megatron_ext.data.selection.rows import Rows
from megatron_ext.data.selection.runs import ChunkRun, Runs, write_arrays
from megatron_ext.files import replacing

_SCORE = "score "
_PAIRS = ("key", "text_hash")


def numbers_of(batch: pa.RecordBatch, seed: int, score_names: Sequence[str]) -> pa.RecordBatch:
    """The entries of an index for documents as a corpus gives them."""
    texts = batch.column("text")
    columns = {"num_bytes": pc.cast(pc.fill_null(pc.binary_length(texts), 0), pa.int32()),
               "num_chars": pc.cast(pc.utf8_length(texts), pa.int32())}
    for name, hashes in zip(_PAIRS, (hash_strings(batch.column("id"), seed), hash_strings(texts)), strict=True):
        columns |= {f"{name} {half}": pa.array(np.ascontiguousarray(hashes[:, half])) for half in (0, 1)}
    return pa.record_batch(columns | {_SCORE + name: batch.column(name) for name in score_names})


def write_index(path: Path, parts: Sequence[pa.RecordBatch]) -> None:
    """Write an index atomically; of no documents, an empty one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    schema = parts[0].schema if parts else pa.schema({})
    with replacing(path) as temporary, pa.ipc.new_file(str(temporary), schema) as writer:
        for part in parts:
            writer.write_batch(part)


def read_index(path: Path) -> pa.Table:
    """The entries of an index."""
    with pa.OSFile(str(path)) as file:
        return pa.ipc.open_file(file).read_all()


def runs_of(path: Path, run: ChunkRun, number: int, criteria: Criteria, keep_rejected: bool) -> Runs:
    """What reading chunk `number` would give, by its index; its run is the chunk itself."""
    table = read_index(path).combine_chunks()
    if not len(table):
        return Runs([run], [[(0, run.chunk.name)]], Rows.none(), np.zeros(len(REASONS), dtype=np.int64), 0)
    scores = {name.removeprefix(_SCORE): table[name].combine_chunks() for name in table.column_names
              if name.startswith(_SCORE)}
    codes = np.full(len(table), PASSED, dtype=np.uint8) if not scores else \
        judge_scores(pa.record_batch(scores), criteria)
    lengths = judge_lengths(table["num_chars"].combine_chunks(), criteria)
    codes = np.where(codes == PASSED, lengths, codes)
    kept = np.arange(len(codes)) if keep_rejected else np.flatnonzero(codes == PASSED)
    pairs = [np.stack([table[f"{name} {half}"].to_numpy()[kept] for half in (0, 1)], axis=1) for name in _PAIRS]
    rows = Rows(*pairs, table["num_bytes"].to_numpy()[kept], codes[kept], np.zeros(len(kept), np.int32),
                kept.astype(np.int32), np.empty((len(kept), 0), np.uint64), np.full(len(kept), number, np.int32),
                kept.astype(np.int32))
    read = np.bincount(codes, minlength=1 + len(REASONS))
    return Runs([run], [[(0, run.chunk.name)]], rows, read[1:], int(read.sum()))


@dataclass
class KnownMeasures:
    """What was measured of the documents of each chunk, one file a chunk."""

    paths: Sequence[Path]
    _loaded: dict[int, Measured] = field(default_factory=dict)

    def of(self, rows: Rows, places: np.ndarray) -> Measured:
        """What is known of the documents at these places; -1 tokens: nothing."""
        found = Measured(np.full(len(rows), -1, dtype=np.int64))
        hits = [Hits.none()]
        for chunk, here in _by_chunk(rows, places):
            known = self._load(chunk)
            sources = rows.source[here]
            found.num_tokens[here] = known.tokens_of(sources)
            hits.append(known.hits.moved(sources, here))
        found.hits = Hits.concatenate(hits)
        return found

    def note(self, rows: Rows, places: np.ndarray, measured: Measured) -> None:
        """Keep what was measured of these documents."""
        for chunk, here in _by_chunk(rows, places):
            known, sources = self._load(chunk), rows.source[here]
            size = max(len(known.num_tokens), int(sources.max()) + 1)
            num_tokens = np.full(size, -1, dtype=np.int64)
            num_tokens[:len(known.num_tokens)] = known.num_tokens
            num_tokens[sources] = measured.num_tokens[here]
            joined = Measured(num_tokens, Hits.concatenate([known.hits, measured.hits.moved(here, sources)]))
            self._loaded[chunk] = joined
            self.paths[chunk].parent.mkdir(parents=True, exist_ok=True)
            write_arrays(self.paths[chunk], num_tokens=num_tokens, hit_rows=joined.hits.documents,
                         hit_items=joined.hits.items)

    def _load(self, chunk: int) -> Measured:
        if chunk not in self._loaded:
            known = Measured(np.empty(0, np.int64))
            if self.paths[chunk].exists():
                with np.load(self.paths[chunk]) as file:
                    known = Measured(file["num_tokens"], Hits(file["hit_rows"], file["hit_items"]))
            self._loaded[chunk] = known
        return self._loaded[chunk]


def _by_chunk(rows: Rows, places: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    by_chunk = places[np.argsort(rows.chunk[places], kind="stable")]
    starts = np.flatnonzero(np.diff(rows.chunk[by_chunk], prepend=-1))
    yield from ((int(rows.chunk[here[0]]), here) for here in np.split(by_chunk, starts[1:]) if len(here))
