"""Rewriting on many machines: each part rewrites its share of the documents, a merge makes the whole of them.

Rewrites and attempts are sorted in every part as they are in the whole, so a merge reads the parts side by side and
needs little memory. The result is that of one machine wherever the engine answers a request alike in whatever batch.
"""

from __future__ import annotations

import heapq
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from megatron_ext.artifacts import write_json
from megatron_ext.data.documents import DocumentWriter, read_documents
from megatron_ext.data.rewriting import outputs

_ROWS = 1_000


def merge_parts(parts: Sequence[Path], folder: Path) -> None:
    """Write documents, attempts and, last, the summary of all parts into `folder`."""
    with DocumentWriter(folder) as writer:
        for document in heapq.merge(*map(read_documents, parts), key=lambda one: (one.document_id, one.style)):
            writer.write(document)
    _merge_attempts([part / outputs.CHUNKS_FILE for part in parts], folder / outputs.CHUNKS_FILE)
    summaries = [json.loads((part / outputs.SUMMARY_FILE).read_text(encoding="utf-8")) for part in parts]
    write_json(folder / outputs.SUMMARY_FILE, merge_summaries(summaries))


def merge_summaries(summaries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The summary of the whole; the documents that were there to choose from are the same for every part."""
    selection = dict(sum((Counter(one["selection"]) for one in summaries), Counter()))
    selection = {key: selection.get(key, 0) for key in summaries[0]["selection"]}
    selection["num_documents"] = summaries[0]["selection"]["num_documents"]
    rewrites = {key: sum(one["rewrites"][key] for one in summaries) for key in summaries[0]["rewrites"]}
    styles = {style: _merge_style([one["styles"][style] for one in summaries]) for style in summaries[0]["styles"]}
    return {"selection": selection, "rewrites": rewrites, "styles": styles}


def _merge_style(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for key, value in parts[0].items():
        if key.startswith("num_"):
            merged[key] = sum(part[key] for part in parts)
        elif isinstance(value, Mapping):
            merged[key] = dict(sum((Counter(part[key]) for part in parts), Counter()))
    return outputs.with_ratios(merged)


def _merge_attempts(files: Sequence[Path], output: Path) -> None:
    rows = heapq.merge(*map(_attempts, files), key=lambda row: (row["document_id"], row["style"], row["chunk"],
                                                                 row["attempt"]))
    temporary = output.with_name(f"{output.name}.tmp")
    with pq.ParquetWriter(temporary, outputs.CHUNK_SCHEMA, compression="zstd") as writer:
        while batch := list(islice(rows, _ROWS)):
            writer.write_table(pa.Table.from_pylist(batch, schema=outputs.CHUNK_SCHEMA))
    temporary.replace(output)


def _attempts(file: Path) -> Iterator[dict[str, Any]]:
    with pq.ParquetFile(file) as parquet:
        for batch in parquet.iter_batches(batch_size=_ROWS):
            yield from batch.to_pylist()
