"""Stage 1: select documents by their scores, to an exact token budget.

1. Read: every chunk of the corpus is judged, once; what passes is laid down in sorted runs (`runs`), and of each
   document some numbers are kept (`rows`).
2. Order: documents are ordered by a hash of seed and id; of equal texts the first stays.
3. Count: in that order, as many as the budget seems to need are tokenized, then as many as still seem to be missing,
   until their tokens reach the budget. The last document taken is the one that reaches it, so the selection is over
   budget by less than one document, whatever was guessed.
4. Gather: the chosen documents are copied from the runs into `documents/part-*.parquet`, in that order.

What is measured of a shard is kept beside the output, under the hash of the shard's bytes (`index`): for another rule,
another budget or a corpus that has grown, only what is new is read and counted.
The result depends on documents, settings and tokenizer alone: not on shards, their order, workers or interruptions.
On many machines, each does 1 for its share of the chunks and counts all tokens that pass there; one does the rest.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash

from megatron_ext.artifacts import Artifact, reference, write_json
from megatron_ext.contents import file_hashes, hash_json
from megatron_ext.data.batches import Chunk
from megatron_ext.data.corpus import Corpus
from megatron_ext.data.documents import DOCUMENTS_FOLDER, document_schema
from megatron_ext.data.hub import open_corpus
from megatron_ext.data.selection.begun import BEGUN
from megatron_ext.data.selection.contamination import Hits, contamination_counts
from megatron_ext.data.selection.counting import Measure, join_measured, load_measured, measure_all, measure_up_to
from megatron_ext.data.selection.decision import Candidates, Decision, budget_notes, decide, find_candidates
from megatron_ext.data.selection.gathering import gather_documents, gather_rejected, mean_scores
from megatron_ext.data.selection.index import KnownMeasures, runs_of
from megatron_ext.data.selection.judging import PASSED, REASONS, Criteria
from megatron_ext.data.selection.laying import Memory, RunTask, laid_down, make_runs, read_by_threads
from megatron_ext.data.selection.measures import Measured
from megatron_ext.data.selection.rows import selection_order
from megatron_ext.data.selection.rules import parse_rule
from megatron_ext.data.selection.runs import ChunkRun, Runs, joined_in_memory, load_runs
from megatron_ext.data.selection.settings import SelectSettings
from megatron_ext.data.tokenizers import TrainingTokenizer, load_tokenizer
from megatron_ext.data.workers import Workers, available_cores
from megatron_ext.parts import PART, Merge, Part, check_parts
from megatron_ext.progress import Progress
from megatron_ext.stage import make_artifact, request_settings

__all__ = ["SelectSettings", "select_corpus"]

REJECTED_FOLDER = "rejected"
_COUNTS = "counts.json"
_WORK = "work"
RUNS, MEASURED, LAID = "runs", "measured", "laid"
KEPT = ".measures"
"""Folder beside the output."""
_MIN_CHUNK_BYTES, _MAX_CHUNK_BYTES = 16 * 2**20, 128 * 2**20
_CHUNKS = 256
_KEPT_VERSION = 1  # of what files of measures mean
_HELD_BYTES = 256 * 2**20  # of documents in memory; more go to disk


def select_corpus(settings: SelectSettings, output: Path, share: Part | Merge | None = None) -> Artifact:
    """Select documents into the artifact `output` (kind "selection").

    A part (kind "selection_part", beside `output`) reads its chunks of the corpus and counts the tokens of all that
    passes there; a merge decides and writes.

    Raises UserError for a corpus, rule or tokenizer that cannot be used, duplicate ids, and too small a corpus.
    """
    with Workers(settings.workers or available_cores()) as workers:
        return _select(Stage(settings, workers, output.parent / KEPT), output, share)


def _select(stage: Stage, output: Path, share: Part | Merge | None) -> Artifact:
    test_items = stage.settings.test_items
    inputs = stage.corpus.inputs() | ({"test_items": test_items} if test_items else {})
    if isinstance(share, Part):
        return make_artifact(share.folder(output), kind="selection_part", inputs=inputs, settings=stage.settings,
                             more=stage.more | {PART: [share.index, share.count]},
                             make=lambda folder: stage.make_part(folder, share))
    find = stage.candidates
    if isinstance(share, Merge):
        parts = share.folders(output)
        check_parts(parts, request_settings(stage.settings, stage.more), inputs)
        find = partial(stage.merged_candidates, parts)
    return make_artifact(output, kind="selection", settings=stage.settings, more=stage.more, inputs=inputs,
                         make=lambda folder: make_selection(folder, stage, find))


@dataclass(frozen=True)
class Kept:
    """Files for what is kept of each chunk."""

    indexes: list[Path]
    measures: list[Path]


class Stage:
    """A selection about to be made: its settings, with what they name opened and checked."""

    def __init__(self, settings: SelectSettings, workers: Workers, kept_at: Path) -> None:
        self.settings, self.workers, self.kept_at = settings, workers, kept_at
        self.tokenizer: TrainingTokenizer | None = None
        if settings.tokenizer is not None:
            self.tokenizer = load_tokenizer(settings.tokenizer, settings.encoder)
        self.rule = parse_rule(settings.rule, settings.scores) if settings.rule is not None else None
        self.labels = self.rule.labels if self.rule else frozenset()
        self.corpus: Corpus = open_corpus(settings.corpus, settings.text_column, settings.id_column,
                                          {name: settings.scores[name] for name in self.score_names},
                                          {name: settings.scores[name] for name in sorted(self.labels)})

    @property
    def score_names(self) -> list[str]:
        """The scores that are numbers."""
        return [name for name in self.settings.scores if name not in self.labels]

    @property
    def schema(self) -> pa.Schema:
        """The columns of the output."""
        return document_schema(list(self.settings.scores), self.labels)

    @property
    def measure(self) -> Measure:
        """What is measured of the documents that pass."""
        settings = self.settings
        # The encoder by its name, so that no worker has to choose.
        encoder = self.tokenizer.encoder.name if self.tokenizer else settings.encoder
        return Measure(settings.tokenizer, encoder, settings.test_items, settings.ngram, settings.short_ngram,
                       settings.contaminated == "remove")

    @property
    def more(self) -> dict[str, Any]:
        """What decides the bytes of the output besides settings and inputs."""
        return self.corpus.request() | {"encoder": self.tokenizer.reference if self.tokenizer else None,
                                        "tokenizer_sha256": self.tokenizer.sha256 if self.tokenizer else None}

    def candidates(self, work: Path) -> tuple[Candidates, Measured]:
        """All documents of the corpus in order, measured as far as the budget needs."""
        chunks = self.corpus.chunks(_chunk_bytes(self.corpus))
        kept = self._kept(chunks)
        runs = self._read(work / RUNS, chunks, kept=kept)
        rows = runs.rows.take(selection_order(runs.rows))
        found = find_candidates(runs, rows, self.settings)
        measure_some = partial(self._measure_some, work, found, KnownMeasures(kept.measures) if kept else None)
        budget = self.settings.budget_tokens
        if budget is None:
            return found, measure_some(found.places, "count tokens")
        return found, measure_up_to(budget, rows, found.places, self.measure.removes_hits, measure_some)

    def _measure_some(self, work: Path, found: Candidates, known: KnownMeasures | None, places: np.ndarray,
                      label: str) -> Measured:
        """Measure the documents at these places that are not known, and keep what was found."""
        measured = known.of(found.rows, places) if known else Measured(np.full(len(found.rows), -1, dtype=np.int64))
        missing = places[measured.num_tokens[places] < 0]
        if len(missing) < len(places):
            print(f"{label}: {len(places) - len(missing):,} of {len(places):,} documents were counted before")
        # By what it holds: what an interrupted start had counted may be known by now.
        folder = work / MEASURED / xxhash.xxh3_64_hexdigest(missing.tobytes())
        runs, rows = laid_down(found.runs, found.rows, missing, work / LAID, self.workers)
        new = measure_all(folder, self.measure, runs.runs, rows, missing, self.workers, label)
        if known:
            known.note(found.rows, missing, new)
        measured.num_tokens[missing] = new.num_tokens[missing]
        return Measured(measured.num_tokens, Hits.concatenate([measured.hits, new.hits]))

    def _kept(self, chunks: Sequence[Chunk]) -> Kept | None:
        """Where to keep what is measured of the chunks; None: nowhere."""
        settings = self.settings
        is_local = all(isinstance(chunk.path, Path) for chunk in chunks)
        if not settings.keep_measures or not self._measures or not is_local or settings.near is not None:
            return None
        hashes = file_hashes(list({Path(chunk.path): None for chunk in chunks}))
        read = [settings.text_column, settings.id_column, settings.seed, self.corpus.is_documents_artifact,
                dict(self.corpus.score_columns), dict(self.corpus.label_columns)]
        measured = [settings.text_column, self.corpus.is_documents_artifact, self.more["encoder"],
                    self.more["tokenizer_sha256"], settings.test_items and reference(settings.test_items),
                    settings.ngram, settings.short_ngram]
        places = [f"{chunk.start}-{'end' if chunk.end is None else chunk.end}" for chunk in chunks]
        folders = [self.kept_at / hashes[Path(chunk.path)] for chunk in chunks]

        def paths(prefix: str, what: Any, suffix: str) -> list[Path]:
            name = hash_json([_KEPT_VERSION, what])[:16]
            return [folder / f"{prefix}-{name}-{place}{suffix}" for folder, place in zip(folders, places, strict=True)]

        return Kept(paths("index", read, ".arrow"), paths("measures", measured, ".npz"))

    def make_part(self, folder: Path, share: Part) -> dict[str, Any]:
        """Read a share of the chunks and measure all that passes there, as nobody knows yet where the budget ends."""
        runs = self._read(folder / RUNS, self.corpus.chunks(_chunk_bytes(self.corpus)), share)
        rows = runs.rows.take(selection_order(runs.rows))
        places = np.flatnonzero(rows.codes == PASSED)
        measured = measure_all(folder / MEASURED, self.measure, runs.runs, rows, places, self.workers)
        return {"input_documents": runs.num_documents, "documents": len(places),
                "tokens": int(measured.num_tokens[places].sum())}

    def merged_candidates(self, parts: Sequence[Path], _: Path) -> tuple[Candidates, Measured]:
        """All documents of the parts in order, with what the parts measured."""
        found = [load_runs(sorted((part / RUNS).glob("*.npz"))) for part in parts]
        orders = [selection_order(runs.rows) for runs in found]
        measured = [load_measured(sorted((part / MEASURED).glob("*.npz")), len(order))
                    for part, order in zip(parts, orders, strict=True)]
        runs = Runs.join(found)
        order = selection_order(runs.rows)
        return (find_candidates(runs, runs.rows.take(order), self.settings), join_measured(measured, orders, order))

    def _read(self, folder: Path, chunks: Sequence[Chunk], share: Part | None = None,
              kept: Kept | None = None) -> Runs:
        """Lay down the runs of the corpus, or of a share; chunks that were done before are not read again."""
        folder.mkdir(parents=True, exist_ok=True)
        settings = self.settings
        print(f"corpus: {self.corpus.describe()}", flush=True)
        criteria = Criteria(self.rule, settings.min_chars, settings.max_chars)
        in_threads = settings.near is None and read_by_threads(chunks)  # MinHash needs Python, too
        is_read_again = share is None and not self._measures and all(isinstance(chunk.path, Path) for chunk in chunks)
        memory = Memory(_HELD_BYTES) if in_threads and is_read_again else None
        tasks = [RunTask(self.corpus, chunk, criteria, settings.seed, settings.keep_rejected, settings.near,
                         folder / f"{number:06d}.npz", memory, number, kept.indexes[number] if kept else None)
                 for number, chunk in enumerate(chunks) if share is None or share.takes(number)]
        known = {task.path for task in tasks if task.index and task.index.exists() and not task.path.exists()}
        if known:
            print(f"read: {len(known):,} of {len(tasks):,} chunks are known from an earlier selection", flush=True)
        held = self._make_runs([task for task in tasks if task.path not in known], in_threads)
        shutil.rmtree(folder / BEGUN, ignore_errors=True)
        found = [held.pop(task.path, None) or (_runs_of_index(task) if task.path in known else load_runs([task.path]))
                 for task in tasks]
        return joined_in_memory(Runs.join([Runs.none(), *found]))

    def _make_runs(self, tasks: Sequence[RunTask], in_threads: bool) -> dict[Path, Runs]:
        """Do the tasks that were not done before; returns what memory holds."""
        missing = [task for task in tasks if not task.path.exists()]
        progress = Progress("read", len(tasks), "chunks", already_done=len(tasks) - len(missing))
        held: dict[Path, Runs] = {}
        for task, made in zip(missing, self.workers.map_in_order(make_runs, missing, in_threads), strict=True):
            progress.advance()
            if made is not None:
                held[task.path] = made
        return held

    @property
    def _measures(self) -> bool:
        """Whether documents are measured, which is done in other processes."""
        return self.tokenizer is not None or self.settings.test_items is not None


def make_selection(folder: Path, stage: Stage,
                   find: Callable[[Path], tuple[Candidates, Measured]]) -> dict[str, Any]:
    """Decide about the candidates that `find(work folder)` gives, write the artifact's files, return its counts."""
    counts_path, work = folder / _COUNTS, folder / _WORK  # the counts come last: with them, only tidying is missing
    if not counts_path.exists():
        candidates, measured = find(work)
        decision = decide(candidates, measured, stage.settings)
        _write(folder, stage, candidates, measured, decision)
        write_json(counts_path, _counts(folder, stage, candidates, measured, decision))
    if work.exists():
        shutil.rmtree(work)
    return json.loads(counts_path.read_text(encoding="utf-8"))


def _write(folder: Path, stage: Stage, candidates: Candidates, measured: Measured, decision: Decision) -> None:
    chosen = decision.chosen
    needed = np.arange(len(candidates.rows)) if stage.settings.keep_rejected else chosen
    runs, rows = laid_down(candidates.runs, candidates.rows, needed, folder / _WORK / LAID, stage.workers)
    num_tokens = measured.num_tokens[chosen] if stage.tokenizer else None
    gather_documents(folder / DOCUMENTS_FOLDER, runs.runs, rows, chosen, num_tokens,
                     stage.schema, stage.workers)
    if stage.settings.keep_rejected:
        rejected = np.flatnonzero(decision.codes != PASSED)
        gather_rejected(folder / REJECTED_FOLDER, runs.runs, rows, rejected,
                        decision.codes[rejected], stage.schema, stage.workers)


def _counts(folder: Path, stage: Stage, candidates: Candidates, measured: Measured,
            decision: Decision) -> dict[str, Any]:
    """What goes to the manifest: documents, tokens, bytes, mean scores, and what became of the others."""
    settings, tokenizer = stage.settings, stage.tokenizer
    later = np.bincount(decision.codes[candidates.rows.codes == PASSED], minlength=1 + len(REASONS))[1:]
    rejected = candidates.runs.rejected + later
    tokens = decision.num_tokens if tokenizer else None
    counts = {
        "documents": len(decision.chosen), "tokens": tokens,
        "bytes": int(candidates.rows.num_bytes[decision.chosen].sum(dtype=np.int64)),
        "notes": budget_notes(measured, decision, settings.budget_tokens),
        "mean_scores": mean_scores(folder, stage.score_names), "input_documents": candidates.runs.num_documents,
        "rejected": dict(zip(REASONS, map(int, rejected), strict=True)), "duplicates": candidates.duplicates,
        "missing_tokens": max(0, (settings.budget_tokens or 0) - (tokens or 0)),
        "epochs_for_budget": max(1.0, settings.budget_tokens / tokens) if settings.budget_tokens and tokens else None,
        "encoder": tokenizer.reference if tokenizer else None,
        "tokenizer_sha256": tokenizer.sha256 if tokenizer else None,
        "tokenizer_files": tokenizer.files if tokenizer else None,
    }
    if settings.test_items:
        counts["contamination"] = {"action": settings.contaminated} | contamination_counts(
            settings.test_items, settings.ngram, settings.short_ngram, decision.hits)
    return counts


def _runs_of_index(task: RunTask) -> Runs:
    assert task.index is not None
    return runs_of(task.index, ChunkRun(task.corpus, task.chunk), task.number, task.criteria, task.keep_rejected)


def _chunk_bytes(corpus: Corpus) -> int:
    """Size of the pieces that the corpus is read in: small enough for all workers of a small corpus, and for the memory
    of one; large enough that a large corpus does not fall into too many runs. A corpus has to double for another one:
    what is kept of a shard is kept by pieces."""
    wanted = 1 << (corpus.num_bytes() // _CHUNKS).bit_length()
    return min(max(wanted, _MIN_CHUNK_BYTES), _MAX_CHUNK_BYTES)
