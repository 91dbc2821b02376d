"""A run in numbers, from the chunks of its windows: what was asked for, what survived, why the rest did not, and how
faithful the survivors are. One window is in memory at a time.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from megatron_ext.data.documents import DOCUMENTS_FOLDER
from megatron_ext.data.rewriting.acceptance import Acceptance
from megatron_ext.data.rewriting.outputs import CHUNKS_FOLDER
from megatron_ext.data.rewriting.plan import Plan
from megatron_ext.data.rewriting.settings import RewriteSettings

SUMMARY_FILE = "summary.json"
NUM_PAIRS = 20
NUM_BINS = 20
DISTRIBUTIONS = {"length_ratio": 3.0, "copied_fraction": 1.0, "shared_fraction": 1.0, "number_retention": 1.0,
                 "name_retention": 1.0}
"""Measure -> upper edge of its histogram, whose bins begin at 0; what lies above is counted in the last bin."""
_SUMS = ("num_source_tokens", "num_tokens", "num_prompt_tokens", "num_completion_tokens")
_TEXTS = ("source", "text", "output")


@dataclass
class _Distribution:
    """Of one measure over surviving chunks."""

    upper: float
    counts: np.ndarray = field(default_factory=lambda: np.zeros(NUM_BINS, np.int64))
    total: float = 0.0

    def add(self, values: np.ndarray) -> None:
        bins = np.minimum((values * (NUM_BINS / self.upper)).astype(np.int64), NUM_BINS - 1)
        self.counts += np.bincount(bins, minlength=NUM_BINS)
        self.total += float(values.sum())

    def result(self) -> dict[str, Any]:
        num = int(self.counts.sum())
        return {"mean": round(self.total / num, 4) if num else None, "upper_edge": self.upper,
                "counts": self.counts.tolist()}


@dataclass
class _StyleSummary:
    num_chunks: int = 0
    num_survived: int = 0
    num_saved_by_retry: int = 0
    num_requests: int = 0
    num_failed_requests: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    first_attempt_reasons: Counter[str] = field(default_factory=Counter)
    languages: Counter[str] = field(default_factory=Counter)
    sums: Counter[str] = field(default_factory=Counter)
    acceptance: Acceptance = field(default_factory=Acceptance)
    distributions: dict[str, _Distribution] = field(
        default_factory=lambda: {name: _Distribution(upper) for name, upper in DISTRIBUTIONS.items()})

    def add(self, rows: pa.Table, retries: int) -> None:
        """Count the rows of this style in a window."""
        attempt = _numbers(rows, "attempt")
        accepted = np.asarray(pc.equal(rows["status"], "accepted"))
        first, rejected_at_last = attempt == 0, (attempt == retries) & ~accepted
        self.num_requests += rows.num_rows
        self.num_failed_requests += int(pc.sum(pc.not_equal(rows["problem"], "")).as_py() or 0)
        survivors = rows.filter(pa.array(accepted))
        self.num_chunks += int(first.sum())
        self.num_survived += survivors.num_rows
        self.num_saved_by_retry += int((accepted & ~first).sum())
        self.reasons.update(_reasons(rows, rejected_at_last))
        self.first_attempt_reasons.update(_reasons(rows, first))
        self.languages.update(language or "" for language in survivors["language"].to_pylist())
        self.acceptance.add(rows.filter(pa.array(first)), survivors)
        self.sums["asked_source_tokens"] += int(_numbers(rows, "num_source_tokens")[first].sum())
        for name in _SUMS:
            self.sums[name] += int(_numbers(rows, name).sum())
            self.sums[f"survivor_{name}"] += int(_numbers(survivors, name).sum())
        for name, distribution in self.distributions.items():
            distribution.add(_numbers(survivors, name))

    def result(self) -> dict[str, Any]:
        """See summarize."""
        tokens_in, tokens_out = self.sums["survivor_num_source_tokens"], self.sums["survivor_num_tokens"]
        return {
            "num_chunks": self.num_chunks, "num_survived": self.num_survived,
            "num_saved_by_retry": self.num_saved_by_retry,
            "num_requests": self.num_requests, "num_failed_requests": self.num_failed_requests,
            "survived_percent": round(100 * self.num_survived / self.num_chunks, 2) if self.num_chunks else None,
            "reasons": _by_count(self.reasons), "first_attempt_reasons": _by_count(self.first_attempt_reasons),
            "num_source_tokens": self.sums["asked_source_tokens"],
            "num_survivor_source_tokens": tokens_in, "num_survivor_tokens": tokens_out,
            "length_ratio": round(tokens_out / tokens_in, 4) if tokens_in else None,
            "num_prompt_tokens": self.sums["num_prompt_tokens"],
            "num_completion_tokens": self.sums["num_completion_tokens"],
            "num_discarded_completion_tokens":
                self.sums["num_completion_tokens"] - self.sums["survivor_num_completion_tokens"],
            "languages": _by_count(self.languages), "acceptance": self.acceptance.result(),
            "distributions": {name: one.result() for name, one in self.distributions.items()},
        }


def summarize(folder: Path, settings: RewriteSettings, plan: Plan) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """The summary of the windows in `folder`, and for each style pairs of source and rewrite to look at.

    `selection`: documents and chunks. `rewrites`: (document, style) pairs that are `complete`, `partial` (a chunk
    failed), `dropped` or `empty`, and the `tokens` written. `styles`, each: `reasons` counts chunks by the reasons of
    their last attempt (a chunk can have several), `first_attempt_reasons` by those of their first; tokens are the
    training tokenizer's but for prompts and completions, which the engine counts; `length_ratio` is tokens out / in of
    survivors; `acceptance` tells which sources survive; `distributions` are histograms over survivors. The pairs are
    survivors drawn by their seeds.
    """
    styles = {style: _StyleSummary() for style in settings.styles}
    samples: dict[str, list[tuple[int, Any]]] = {style: [] for style in settings.styles}
    outcomes: Counter[str] = Counter(complete=0, partial=0, dropped=0, empty=0, tokens=0)
    ledger = {"num_documents": plan.num_documents, "num_chosen_documents": plan.num_chosen_documents, "num_chunks": 0,
              "num_chunks_left_out": 0}
    for file in sorted((folder / CHUNKS_FOLDER).glob("part-*.parquet")):
        names = pq.read_schema(file).names
        table = pq.read_table(file, columns=[name for name in names if name not in _TEXTS], use_threads=False)
        documents = pq.read_table(folder / DOCUMENTS_FOLDER / file.name, columns=["num_tokens"], use_threads=False)
        outcomes["tokens"] += int(_numbers(documents, "num_tokens").sum())
        outcomes.update(_outcomes(table, settings.failed_chunks == "drop_document"))
        _add_to_ledger(ledger, table, settings.styles[0])
        for style, summary in styles.items():
            summary.add(table.filter(pc.equal(table["style"], style)), settings.num_retries)
            samples[style] = heapq.nsmallest(NUM_PAIRS, [*samples[style], *_candidates(file, table, style)],
                                             key=lambda candidate: candidate[0])
    return ({"selection": ledger, "rewrites": dict(outcomes),
             "styles": {style: summary.result() for style, summary in styles.items()}},
            {style: [_pair(*place) for _, place in chosen] for style, chosen in samples.items()})


def _outcomes(table: pa.Table, drops: bool) -> Counter[str]:
    """How the (document, style) pairs of a window ended."""
    is_first = pc.cast(pc.equal(table["attempt"], 0), pa.int64())
    is_accepted = pc.cast(pc.equal(table["status"], "accepted"), pa.int64())
    pairs = pa.table({"document_id": table["document_id"], "style": table["style"], "asked": is_first,
                      "accepted": is_accepted}).group_by(["document_id", "style"]).aggregate([("asked", "sum"),
                                                                                             ("accepted", "sum")])
    asked, accepted = _numbers(pairs, "asked_sum"), _numbers(pairs, "accepted_sum")
    num_partial = int(((accepted > 0) & (accepted < asked)).sum())
    return Counter(complete=int((accepted == asked).sum()), empty=int((accepted == 0).sum()),
                   **{"dropped" if drops else "partial": num_partial})


def _add_to_ledger(ledger: dict[str, int], table: pa.Table, style: str) -> None:
    """Chunks are the same in every style: one is counted."""
    rows = table.filter(pc.and_(pc.equal(table["style"], style), pc.equal(table["attempt"], 0)))
    beginnings = rows.filter(pc.equal(rows["chunk"], 0))
    ledger["num_chunks"] += rows.num_rows
    ledger["num_chunks_left_out"] += int(_numbers(beginnings, "num_chunks").sum()) - rows.num_rows


def _candidates(file: Path, table: pa.Table, style: str) -> list[tuple[int, tuple[Path, int]]]:
    """(seed, place) of the survivors of a style with the smallest seeds: a sample, as seeds are hashes."""
    wanted = np.asarray(pc.and_(pc.equal(table["style"], style), pc.equal(table["status"], "accepted")))
    rows = np.flatnonzero(wanted)
    seeds = _numbers(table, "seed")[rows]
    order = np.argsort(seeds, kind="stable")[:NUM_PAIRS]
    return [(int(seeds[place]), (file, int(rows[place]))) for place in order]


def _pair(file: Path, row: int) -> dict[str, Any]:
    with pq.ParquetFile(file) as chunks:
        for group in range(chunks.num_row_groups):
            num_rows = chunks.metadata.row_group(group).num_rows
            if row < num_rows:
                return chunks.read_row_group(group).slice(row, 1).to_pylist()[0]
            row -= num_rows
    raise AssertionError(f"{file} has no such row")


def _reasons(rows: pa.Table, where: np.ndarray) -> Counter[str]:
    reasons = pc.list_flatten(rows.filter(pa.array(where))["reasons"])
    return Counter(reasons.to_pylist())


def _by_count(counts: Counter[str]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _numbers(table: pa.Table, name: str) -> np.ndarray:
    """A column of numbers; what is not known counts as 0."""
    return pc.fill_null(table[name].combine_chunks(), 0).to_numpy(zero_copy_only=False)


def style_totals(styles: Sequence[dict[str, Any]]) -> dict[str, int]:
    """Sums over styles of what the ledger counts."""
    names = ("num_chunks", "num_survived", "num_source_tokens", "num_survivor_source_tokens", "num_survivor_tokens",
             "num_prompt_tokens", "num_completion_tokens", "num_discarded_completion_tokens")
    return {name: sum(style[name] for style in styles) for name in names}
