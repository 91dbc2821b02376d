"""What a rewriting run leaves: documents of surviving chunks, every attempt with its reasons, a summary by style."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from megatron_ext.data.documents import Document, DocumentWriter, write_parquet
from megatron_ext.data.rewriting.chunking import CountTokens
from megatron_ext.data.rewriting.measures import Measures
from megatron_ext.data.rewriting.prompts import Prompt
from megatron_ext.data.rewriting.work import Attempt

FailedChunks = Literal["survivors", "drop_document"]
CHUNKS_FILE = "chunks.parquet"
SUMMARY_FILE = "summary.json"
CHUNK_SCHEMA = pa.schema({
    "document_id": pa.string(), "chunk": pa.int64(), "num_chunks": pa.int64(), "style": pa.string(),
    "prompt_version": pa.int64(), "attempt": pa.int64(), "seed": pa.int64(), "status": pa.string(),
    "reasons": pa.list_(pa.string()), "source": pa.string(), "output": pa.string(), "text": pa.string(),
    "finish_reason": pa.string(), "num_source_tokens": pa.int64(), "num_tokens": pa.int64(),
    "num_prompt_tokens": pa.int64(), "num_completion_tokens": pa.int64(),
    **{field.name: pa.int64() if field.name.startswith("num_") else pa.float64() for field in fields(Measures)},
})


def write_chunks(folder: Path, attempts: Sequence[Attempt], prompts: dict[str, Prompt]) -> None:
    """Write chunks.parquet, one row an attempt, sorted by document, style, chunk and attempt.

    `output` is what the rewriter wrote, `text` what is left of it without its wrapping. `num_source_tokens` and
    `num_tokens` (of `text`) are counted by the training tokenizer, `num_prompt_tokens` and `num_completion_tokens`
    by the engine.
    """
    rows = [_chunk_row(attempt, prompts[attempt.item.style].version) for attempt in _sorted(attempts)]
    write_parquet(folder / CHUNKS_FILE, pa.Table.from_pylist(rows, schema=CHUNK_SCHEMA))


def write_documents(folder: Path, attempts: Sequence[Attempt], failed_chunks: FailedChunks,
                    count_tokens: CountTokens) -> Counter[str]:
    """Write the rewrites; count the (document, style) pairs that are `complete`, `partial`, `dropped`, `empty`, and the
    `tokens` written.

    A rewrite is its accepted chunks in order, a blank line between them. Where a chunk failed, `survivors` keeps the
    others and `drop_document` keeps nothing.
    """
    outcomes: Counter[str] = Counter(complete=0, partial=0, dropped=0, empty=0, tokens=0)
    with DocumentWriter(folder) as writer:
        for document_id, style, accepted, num_requested in _by_rewrite(attempts):
            if not accepted:
                outcomes["empty"] += 1
            elif len(accepted) < num_requested and failed_chunks == "drop_document":
                outcomes["dropped"] += 1
            else:
                outcomes["complete" if len(accepted) == num_requested else "partial"] += 1
                text = "\n\n".join(attempt.verdict.text for attempt in accepted)
                num_tokens = int(count_tokens([text])[0])
                outcomes["tokens"] += num_tokens
                writer.write(Document(id=f"{document_id}/{style}", document_id=document_id, style=style, text=text,
                                      num_tokens=num_tokens))
    return outcomes


def summarize(attempts: Sequence[Attempt], styles: Sequence[str]) -> dict[str, dict[str, Any]]:
    """For each style, what was asked for, what survived, and why the rest did not.

    `reasons` counts chunks by the reasons of their last attempt (a chunk can have several), `first_attempt_reasons` by
    those of their first. Tokens are the training tokenizer's; `length_ratio` is tokens out / tokens in of survivors.
    """
    return {style: _summarize_style([attempt for attempt in attempts if attempt.item.style == style])
            for style in styles}


def _summarize_style(attempts: Sequence[Attempt]) -> dict[str, Any]:
    first = [attempt for attempt in attempts if attempt.attempt == 0]
    last = {(attempt.item.document_id, attempt.item.chunk): attempt
            for attempt in sorted(attempts, key=lambda attempt: attempt.attempt)}
    survivors = [attempt for attempt in last.values() if attempt.accepted]
    tokens_in = sum(attempt.item.num_source_tokens for attempt in survivors)
    tokens_out = sum(attempt.num_tokens for attempt in survivors)
    return with_ratios({
        "num_chunks": len(first),
        "num_survived": len(survivors),
        "num_saved_by_retry": sum(attempt.attempt > 0 for attempt in survivors),
        "reasons": _count_reasons(attempt for attempt in last.values() if not attempt.accepted),
        "first_attempt_reasons": _count_reasons(first),
        "num_source_tokens": sum(attempt.item.num_source_tokens for attempt in first),
        "num_survivor_source_tokens": tokens_in,
        "num_survivor_tokens": tokens_out,
        "num_prompt_tokens": sum(attempt.completion.num_prompt_tokens for attempt in attempts),
        "num_completion_tokens": sum(attempt.completion.num_tokens for attempt in attempts),
    })


def with_ratios(style: dict[str, Any]) -> dict[str, Any]:
    """The counts of a style with what follows from them."""
    chunks, tokens_in = style["num_chunks"], style["num_survivor_source_tokens"]
    return style | {
        "survived_percent": round(100 * style["num_survived"] / chunks, 2) if chunks else None,
        "length_ratio": round(style["num_survivor_tokens"] / tokens_in, 4) if tokens_in else None,
    }


def _count_reasons(attempts: Iterator[Attempt] | Sequence[Attempt]) -> dict[str, int]:
    counts = Counter(reason for attempt in attempts for reason in attempt.verdict.reasons)
    return dict(counts.most_common())


def _by_rewrite(attempts: Sequence[Attempt]) -> Iterator[tuple[str, str, list[Attempt], int]]:
    """(document id, style, accepted attempts in the order of the chunks, number of chunks asked for)."""
    for (document_id, style), group in groupby(_sorted(attempts), key=lambda one: (one.item.document_id,
                                                                                   one.item.style)):
        group = list(group)
        yield document_id, style, [one for one in group if one.accepted], len({one.item.chunk for one in group})


def _sorted(attempts: Sequence[Attempt]) -> list[Attempt]:
    return sorted(attempts, key=lambda one: (one.item.document_id, one.item.style, one.item.chunk, one.attempt))


def _chunk_row(attempt: Attempt, prompt_version: int) -> dict[str, Any]:
    item, completion, verdict = attempt.item, attempt.completion, attempt.verdict
    return {
        "document_id": item.document_id, "chunk": item.chunk, "num_chunks": item.num_chunks, "style": item.style,
        "prompt_version": prompt_version, "attempt": attempt.attempt, "seed": attempt.seed,
        "status": "accepted" if attempt.accepted else "rejected", "reasons": list(verdict.reasons),
        "source": item.source, "output": completion.text, "text": verdict.text,
        "finish_reason": completion.finish_reason, "num_source_tokens": item.num_source_tokens,
        "num_tokens": attempt.num_tokens, "num_prompt_tokens": completion.num_prompt_tokens,
        "num_completion_tokens": completion.num_tokens, **(asdict(verdict.measures) if verdict.measures else {}),
    }
