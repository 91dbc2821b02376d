"""Which documents are rewritten, and their division into windows; nothing but ids and token counts is read."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from megatron_ext.data.documents import Document, document_parts, documents_of, read_document_batches
from megatron_ext.data.rewriting.settings import RewriteSettings
from megatron_ext.errors import UserError


@dataclass(frozen=True)
class WindowPlan:
    """Consecutive rows of the selection."""

    index: int
    first_row: int
    end_row: int
    num_tokens: int
    """Source tokens of its chosen documents."""


@dataclass(frozen=True)
class Plan:
    """What a run rewrites."""

    windows: list[WindowPlan]
    num_documents: int
    num_chosen_documents: int
    chosen: frozenset[str] | None
    """Ids of the documents; None: all within the bound."""

    def takes(self, document_id: str, num_tokens: int, settings: RewriteSettings) -> bool:
        """Whether the document is rewritten."""
        bound = settings.max_document_tokens
        return (bound is None or num_tokens <= bound) and (self.chosen is None or document_id in self.chosen)


def make_plan(settings: RewriteSettings) -> Plan:
    """Choose documents and lay windows over the selection; the choice does not depend on the order of its rows.

    Raises UserError when no document may be rewritten.
    """
    num_documents = num_fitting = 0
    shortest = None
    for _, num_tokens in _sizes(settings.documents):
        num_documents += 1
        shortest = num_tokens if shortest is None else min(shortest, num_tokens)
        num_fitting += settings.max_document_tokens is None or num_tokens <= settings.max_document_tokens
    if not num_fitting:
        raise UserError(f"{settings.documents}: no document to rewrite ({num_documents:,} documents, max_document_"
                        f"tokens = {settings.max_document_tokens}, the shortest has {shortest or 0:,} tokens)")
    plan = Plan([], num_documents, min(num_fitting, settings.max_documents or num_fitting),
                _choose(settings, num_fitting))
    plan.windows.extend(_windows(settings, plan))
    return plan


def read_window(artifact: Path, window: WindowPlan) -> Iterator[Document]:
    """The documents of a window; only the row groups that hold them are read."""
    first = 0
    for part in document_parts(artifact):
        with pq.ParquetFile(part) as file:
            for group in range(file.num_row_groups):
                end = first + file.metadata.row_group(group).num_rows
                if first < window.end_row and window.first_row < end:
                    table = file.read_row_group(group, use_threads=False)
                    rows = table.slice(max(0, window.first_row - first), window.end_row - max(first, window.first_row))
                    yield from documents_of(rows)
                first = end
        if first >= window.end_row:
            return


def _choose(settings: RewriteSettings, num_fitting: int) -> frozenset[str] | None:
    if settings.max_documents is None or num_fitting <= settings.max_documents:
        return None
    bound = settings.max_document_tokens
    ranked = ((hashlib.sha256(f"{settings.seed}/{name}".encode()).digest(), name)
              for name, num_tokens in _sizes(settings.documents) if bound is None or num_tokens <= bound)
    return frozenset(name for _, name in heapq.nsmallest(settings.max_documents, ranked))


def _windows(settings: RewriteSettings, plan: Plan) -> Iterator[WindowPlan]:
    index = first = total = row = 0
    for row, (name, num_tokens) in enumerate(_sizes(settings.documents), start=1):
        total += num_tokens if plan.takes(name, num_tokens, settings) else 0
        if total >= settings.window_tokens:
            yield WindowPlan(index, first, row, total)
            index, first, total = index + 1, row, 0
    if total or not index:
        yield WindowPlan(index, first, row, total)


def _sizes(artifact: Path) -> Iterator[tuple[str, int]]:
    """(id, tokens) of every document."""
    for batch in read_document_batches(artifact, ["id", "num_tokens"]):
        yield from zip(batch.column("id").to_pylist(), batch.column("num_tokens").to_pylist(), strict=True)
