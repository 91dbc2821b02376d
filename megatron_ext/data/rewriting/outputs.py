"""What a finished window leaves: every attempt with its reasons, and the documents made of the surviving chunks."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from megatron_ext.data.documents import CHUNKS, DOCUMENTS_FOLDER, rewrite_schema, write_parquet
from megatron_ext.data.rewriting.acceptance import NUMBERS, SCORES
from megatron_ext.data.rewriting.checking.lexicon import Lexicon
from megatron_ext.data.rewriting.checking.measures import Measures
from megatron_ext.data.rewriting.checking.quantities import numbers_per_100_words
from megatron_ext.data.rewriting.window import Attempt

if TYPE_CHECKING:
    from megatron_ext.data.rewriting.helpers import Tools

CHUNKS_FOLDER = "chunks"
_MEASURE_TYPES = {"float": pa.float64(), "int": pa.int64(), "str": pa.string(), "bool": pa.bool_()}
_CHUNK_SCHEMA = pa.schema({
    "document_id": pa.string(), "chunk": pa.int64(), "num_chunks": pa.int64(), "style": pa.string(),
    "prompt_version": pa.int64(), "attempt": pa.int64(), "seed": pa.int64(), "status": pa.string(),
    "reasons": pa.list_(pa.string()), "source": pa.string(), "output": pa.string(), "text": pa.string(),
    "finish_reason": pa.string(), "problem": pa.string(), "num_source_tokens": pa.int64(), "num_tokens": pa.int64(),
    "num_prompt_tokens": pa.int64(), "num_completion_tokens": pa.int64(),
    NUMBERS: pa.float64(), SCORES: pa.map_(pa.string(), pa.float64()),
    **{field.name: _MEASURE_TYPES[str(field.type)] for field in fields(Measures)},
})


def part_name(index: int) -> str:
    """File of a window in each folder."""
    return f"part-{index:05d}.parquet"


def write_window(tools: Tools, folder: Path, index: int, attempts: Sequence[Attempt]) -> None:
    """Write a window's documents, then its chunks: with these it is done.

    chunks/part-*.parquet has a row an attempt, sorted by document, style, chunk and attempt. `output` is what the
    rewriter wrote, `text` what is left of it without its wrapping. `num_source_tokens` and `num_tokens` (of `text`)
    are counted by the training tokenizer, `num_prompt_tokens` and `num_completion_tokens` by the engine (null where it
    does not count); `numbers_per_100_words` and the document's `scores` tell of the source. `problem` says why
    a request got no answer.
    """
    attempts = sorted(attempts, key=lambda one: (one.item.document_id, one.item.style, one.item.chunk, one.attempt))
    documents = pa.Table.from_pylist(list(_documents(tools, attempts)), schema=rewrite_schema())
    write_parquet(folder / DOCUMENTS_FOLDER / part_name(index), documents)
    rows = [_chunk_row(one, tools.prompts[one.item.style].version, tools.lexicon) for one in attempts]
    write_parquet(folder / CHUNKS_FOLDER / part_name(index), pa.Table.from_pylist(rows, schema=_CHUNK_SCHEMA))


def finished_windows(folder: Path) -> set[int]:
    """Indices of the windows whose files are there; makes the folders, and removes what killed writers left."""
    for name in (DOCUMENTS_FOLDER, CHUNKS_FOLDER):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for file in (folder / name).glob("*.tmp"):
            file.unlink()
    return {int(file.stem.removeprefix("part-")) for file in (folder / CHUNKS_FOLDER).glob("part-*.parquet")}


def link_parts(parts: Sequence[Path], folder: Path) -> None:
    """Bring the files of all windows together in one folder, as links where the file system can."""
    finished_windows(folder)
    for part in parts:
        for name in (DOCUMENTS_FOLDER, CHUNKS_FOLDER):
            for file in sorted((part / name).glob("part-*.parquet")):
                target = folder / name / file.name
                target.unlink(missing_ok=True)
                _link_or_copy(file, target)


def _link_or_copy(file: Path, target: Path) -> None:
    try:
        os.link(file, target)
    except OSError:
        import shutil

        shutil.copyfile(file, target)


def _documents(tools: Tools, attempts: Sequence[Attempt]) -> Iterator[dict[str, Any]]:
    """A rewrite is its accepted chunks in order, a blank line between them.

    Where a chunk failed, `survivors` keeps the others and `drop_document` keeps nothing.
    """
    for (document_id, style), group in groupby(attempts, key=lambda one: (one.item.document_id, one.item.style)):
        rows = list(group)
        accepted = [one for one in rows if one.accepted]
        is_partial = len(accepted) < len({one.item.chunk for one in rows})
        if accepted and not (is_partial and tools.settings.failed_chunks == "drop_document"):
            text = "\n\n".join(one.verdict.text for one in accepted)
            yield {"id": f"{document_id}/{style}", "document_id": document_id, "style": style, "text": text,
                   "num_tokens": int(tools.count_tokens([text])[0]), CHUNKS: [one.item.chunk for one in accepted]}


def _chunk_row(attempt: Attempt, prompt_version: int, lexicon: Lexicon) -> dict[str, Any]:
    item, completion, verdict = attempt.item, attempt.completion, attempt.verdict
    return {
        "document_id": item.document_id, "chunk": item.chunk, "num_chunks": item.num_chunks, "style": item.style,
        "prompt_version": prompt_version, "attempt": attempt.attempt, "seed": attempt.seed,
        "status": "accepted" if attempt.accepted else "rejected", "reasons": list(verdict.reasons),
        "source": item.source, "output": completion.text, "text": verdict.text,
        "finish_reason": completion.finish_reason, "problem": completion.problem,
        "num_source_tokens": item.num_source_tokens,
        "num_tokens": attempt.num_tokens, "num_prompt_tokens": completion.num_prompt_tokens,
        "num_completion_tokens": completion.num_tokens, SCORES: list(item.scores),
        NUMBERS: numbers_per_100_words(item.source, lexicon),
        **(asdict(verdict.measures) if verdict.measures else {}),
    }
