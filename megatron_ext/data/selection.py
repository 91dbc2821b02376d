"""Stage 1: select documents by their scores, to an exact token budget.

1. Scan: every chunk of the corpus is judged; what passes is kept as hashes (`megatron_ext.data.candidates`).
2. Order: candidates are sorted by a hash of seed and id; of equal texts the first stays.
3. Count: in that order, as many as the budget seems to need are read and tokenized, then as many as still seem to be
   missing, until their tokens reach the budget. The last document taken is the one that reaches it, so the selection
   is over budget by less than one document, whatever was guessed.
4. Write: the counted documents lie in sorted runs; they are merged into `documents/part-*.parquet`, in that order.

The result depends on documents, settings and tokenizer alone: not on shards, their order, workers or interruptions.
"""

from __future__ import annotations

import heapq
import json
import keyword
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow.parquet as pq
from pydantic import Field, field_validator

from megatron_ext.artifacts import Artifact, produce, write_json
from megatron_ext.data.candidates import (
    Candidates,
    Criteria,
    ScanTask,
    first_of_equal_texts,
    in_selection_order,
    load_scan,
    refuse_duplicate_ids,
    scan_chunk,
)
from megatron_ext.data.corpus import CHUNK_BYTES, Chunk, Corpus
from megatron_ext.data.documents import FIELDS, Document, DocumentWriter
from megatron_ext.data.rules import Rule, parse_rule
from megatron_ext.data.runs import RunTask, make_run, plan_runs, run_tokens
from megatron_ext.data.tokenizers import EncoderName, TrainingTokenizer, load_tokenizer
from megatron_ext.data.workers import available_cores, map_in_order
from megatron_ext.errors import UserError
from megatron_ext.progress import Progress
from megatron_ext.settings import Settings

_COUNTS = "counts.json"
_WORK = "work"
_FIRST_BYTES_PER_TOKEN = 2.0  # a low guess: the first round then measures, and little is tokenized in vain
_MARGIN = 1.02
_MIN_ROUND_DOCUMENTS = 256


class SelectSettings(Settings):
    """Settings of the selecting stage."""

    corpus: Path
    """File or folder of .parquet, .jsonl, .jsonl.gz, .jsonl.zst shards, or a documents artifact."""
    tokenizer: Path
    """Folder of the training tokenizer, which counts the tokens."""
    text_column: str = "text"
    """Column of the text."""
    id_column: str | None = "id"
    """Column of the document's id; null: ids are made from the text."""
    scores: dict[str, str] = Field(default_factory=dict)
    """Short name -> score column, e.g. {stem: stem_score}; the rule uses the short names, the output carries them."""
    rule: str | None = None
    """Condition over the scores, e.g. `stem > 2.5 or edu > 2.5`; null: every document."""
    min_chars: int = Field(default=1, ge=0)
    """Shorter documents are rejected; characters."""
    max_chars: int | None = Field(default=None, ge=1)
    """Longer documents are rejected; characters."""
    budget_tokens: int | None = Field(default=None, gt=0)
    """Tokens to select, end-of-document tokens not counted; null: all that passes."""
    on_shortage: Literal["error", "allow"] = "error"
    """What to do when the corpus has fewer tokens than the budget; allow: take all and record what is missing."""
    seed: int = Field(default=0, ge=0, lt=2**64)
    """Decides which documents are taken when more pass than the budget needs."""
    encoder: EncoderName = "auto"
    """Library that encodes; auto: tokenizers where there is a tokenizer.json, else sentencepiece."""
    workers: int | None = Field(default=None, ge=1)
    """Processes; default: one a core. Does not change the result."""

    @field_validator("scores")
    @classmethod
    def _names_are_usable(cls, scores: dict[str, str]) -> dict[str, str]:
        for name in scores:
            if not name.isidentifier() or keyword.iskeyword(name) or name in FIELDS:
                raise ValueError(f"{name!r} cannot be the name of a score: use a word that is not {', '.join(FIELDS)}")
        return scores


def select_corpus(settings: SelectSettings, output: Path) -> Artifact:
    """Select documents into the artifact `output` (kind "selection").

    Raises UserError for a corpus, rule or tokenizer that cannot be used, duplicate ids, and too small a corpus.
    """
    tokenizer = load_tokenizer(settings.tokenizer, settings.encoder)
    rule = parse_rule(settings.rule, settings.scores) if settings.rule is not None else None
    request = settings.model_dump(mode="json", exclude={"corpus", "tokenizer", "workers"})
    request |= {"encoder": tokenizer.reference, "tokenizer_sha256": tokenizer.sha256}
    return produce(output, kind="selection", settings=request, inputs={"corpus": settings.corpus},
                   make=lambda folder: _make(folder, settings, rule, tokenizer))


def _make(folder: Path, settings: SelectSettings, rule: Rule | None, tokenizer: TrainingTokenizer) -> dict[str, Any]:
    counts_path, work = folder / _COUNTS, folder / _WORK  # the counts come last: with them, only tidying is missing
    if not counts_path.exists():
        corpus = Corpus(settings.corpus, settings.text_column, settings.id_column, settings.scores)
        chunks = corpus.chunks(CHUNK_BYTES)
        found, rejected, num_input = _scan(work / "scan", settings, corpus, chunks, rule)
        ordered = in_selection_order(found)
        refuse_duplicate_ids(ordered, corpus, chunks)
        unique = ordered.take(first_of_equal_texts(ordered))
        rounds, num_tokens = _count(work, settings, corpus, chunks, unique)
        num_chosen = _cut(num_tokens, settings)
        counts = _write(folder, settings, rounds, num_chosen)
        rejected |= {"duplicate_text": len(ordered) - len(unique), "over_budget": len(unique) - num_chosen}
        missing = max(0, (settings.budget_tokens or 0) - counts["tokens"])
        counts |= {"input_documents": num_input, "rejected": rejected, "missing_tokens": missing,
                   "encoder": tokenizer.reference, "tokenizer_sha256": tokenizer.sha256,
                   "tokenizer_files": tokenizer.files}
        write_json(counts_path, counts)
    if work.exists():
        shutil.rmtree(work)
    return json.loads(counts_path.read_text(encoding="utf-8"))


def _scan(folder: Path, settings: SelectSettings, corpus: Corpus, chunks: list[Chunk],
          rule: Rule | None) -> tuple[Candidates, dict[str, int], int]:
    """Scan the chunks that were not scanned yet; returns what `load_scan` does."""
    folder.mkdir(parents=True, exist_ok=True)
    criteria = Criteria(rule, settings.min_chars, settings.max_chars)
    tasks = [ScanTask(corpus, chunk, number, criteria, settings.seed, folder / f"{number:06d}.npz")
             for number, chunk in enumerate(chunks)]
    missing = [task for task in tasks if not task.path.exists()]
    progress = Progress("scan", len(tasks), "chunks", already_done=len(tasks) - len(missing))
    for _ in map_in_order(scan_chunk, missing, settings.workers or available_cores()):
        progress.advance()
    return load_scan([task.path for task in tasks])


def _count(work: Path, settings: SelectSettings, corpus: Corpus, chunks: list[Chunk],
           candidates: Candidates) -> tuple[list[list[Path]], np.ndarray]:
    """Tokenize candidates in order, in rounds, until the budget is reached.

    Returns the files of sorted runs of each round, and the tokens of each candidate that was tokenized.
    """
    byte_ends = np.cumsum(candidates.num_bytes)
    num_tokens = np.empty(0, dtype=np.int64)
    rounds: list[list[Path]] = []
    bytes_per_token = _FIRST_BYTES_PER_TOKEN
    while (start := len(num_tokens)) < len(candidates) and not _reached(num_tokens, settings.budget_tokens):
        stop = len(candidates)
        if settings.budget_tokens is not None:
            wanted = (settings.budget_tokens - int(num_tokens.sum())) * bytes_per_token
            byte_start = byte_ends[start - 1] if start else 0
            stop = int(np.searchsorted(byte_ends, byte_start + wanted)) + 1
            stop = min(max(stop, start + _MIN_ROUND_DOCUMENTS), len(candidates))
        tasks = plan_runs(work / f"round-{len(rounds):03d}", settings, corpus, chunks, candidates, range(start, stop))
        _make_runs(tasks, settings, label=f"count tokens, round {len(rounds) + 1}")
        rounds.append([task.path for task in tasks])
        num_tokens = np.concatenate([num_tokens, run_tokens(rounds[-1], range(start, stop))])
        bytes_per_token = _MARGIN * int(byte_ends[stop - 1]) / max(1, int(num_tokens.sum()))
    return rounds, num_tokens


def _make_runs(tasks: list[RunTask], settings: SelectSettings, label: str) -> None:
    missing = [task for task in tasks if not task.path.exists()]
    progress = Progress(label, len(tasks), "runs", rate_unit="tokens", already_done=len(tasks) - len(missing))
    for num_tokens in map_in_order(make_run, missing, settings.workers or available_cores()):
        progress.advance(1, num_tokens)


def _reached(num_tokens: np.ndarray, budget_tokens: int | None) -> bool:
    return budget_tokens is not None and int(num_tokens.sum()) >= budget_tokens


def _cut(num_tokens: np.ndarray, settings: SelectSettings) -> int:
    """How many documents, in order, reach the budget. Raises UserError when all of them do not."""
    budget = settings.budget_tokens
    if _reached(num_tokens, budget):
        return int(np.searchsorted(np.cumsum(num_tokens), budget)) + 1
    if budget is not None and settings.on_shortage == "error":
        raise UserError(f"{settings.corpus}: the {len(num_tokens):,} documents that pass have "
                        f"{int(num_tokens.sum()):,} tokens, fewer than budget_tokens = {budget:,}. Lower the budget, "
                        "widen the rule, or take them all with on_shortage=allow")
    return len(num_tokens)


def _write(folder: Path, settings: SelectSettings, rounds: list[list[Path]], num_chosen: int) -> dict[str, Any]:
    """Merge the runs into the documents of the artifact; returns documents, tokens, bytes and mean scores."""
    counts = {"documents": num_chosen, "tokens": 0, "bytes": 0}
    means = {name: _Mean() for name in settings.scores}
    with DocumentWriter(folder, list(settings.scores)) as writer:
        progress = Progress("write", num_chosen, "documents")
        for document in _merged(rounds, num_chosen, list(settings.scores)):
            writer.write(document)
            counts["tokens"] += document.num_tokens
            counts["bytes"] += len(document.text.encode())
            for name, score in document.scores.items():
                means[name].add(score)
            progress.advance()
    return counts | {"mean_scores": {name: mean.value for name, mean in means.items()}}


class _Mean:
    """Mean of the scores that are there; None without any."""

    def __init__(self) -> None:
        self._sum, self._count = 0.0, 0

    def add(self, score: float | None) -> None:
        if score is not None and score == score:  # not NaN
            self._sum += score
            self._count += 1

    @property
    def value(self) -> float | None:
        return self._sum / self._count if self._count else None


def _merged(rounds: list[list[Path]], num_chosen: int, score_names: list[str]) -> Iterator[Document]:
    """The first `num_chosen` documents in order. Later rounds hold later documents."""
    for runs in rounds:
        for row in heapq.merge(*map(_rows, runs), key=lambda row: row["rank"]):
            if row["rank"] >= num_chosen:
                return
            yield Document(**{name: row[name] for name in FIELDS}, scores={name: row[name] for name in score_names})


def _rows(run: Path) -> Iterator[dict[str, Any]]:
    with pq.ParquetFile(run) as file:
        for batch in file.iter_batches(batch_size=128, use_threads=False):
            yield from batch.to_pylist()
