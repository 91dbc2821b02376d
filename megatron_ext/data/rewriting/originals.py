"""The survivor-matched control: original text of exactly the chunks whose rewrites were accepted.

Checks choose which text is rewritten: what survives differs from what is rejected before any model has trained on it.
Each document of the rewrites (a document in a style) becomes a document of the original text of the same chunks, so
that every passage stands in both sources equally often, and held-out documents are the same.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from megatron_ext.artifacts import Artifact
from megatron_ext.data.documents import CHUNKS, DOCUMENTS_FOLDER, document_parts, rewrite_schema, write_parquet
from megatron_ext.data.rewriting.helpers import token_counter
from megatron_ext.data.rewriting.outputs import CHUNKS_FOLDER
from megatron_ext.identity import PLACE
from megatron_ext.stage import StageSettings, make_artifact

KIND = "rewritten_originals"


class OriginalsSettings(StageSettings):
    """Which rewrites the originals are taken for."""

    rewrites: Annotated[Path, PLACE]
    """Rewrites (artifact)."""
    tokenizer: Annotated[Path, PLACE]
    """Folder of the training tokenizer, which counts tokens."""


def take_originals(settings: OriginalsSettings, output: Path) -> Artifact:
    """Make the artifact `output` (kind "rewritten_originals"): documents/ with the ids, styles, chunks of the rewrites.

    Raises UserError for a missing input.
    """
    Artifact.open(settings.rewrites, kind="rewrites")
    return make_artifact(output, kind=KIND, settings=settings, make=lambda folder: _make(settings, folder),
                         inputs={"rewrites": settings.rewrites, "tokenizer": settings.tokenizer})


def _make(settings: OriginalsSettings, folder: Path) -> dict[str, Any]:
    count_tokens = token_counter(settings.tokenizer)
    (folder / DOCUMENTS_FOLDER).mkdir(parents=True, exist_ok=True)
    num_documents = num_tokens = 0
    for part in document_parts(settings.rewrites):
        rows = list(_originals(part, settings.rewrites / CHUNKS_FOLDER / part.name))
        sizes = count_tokens([row["text"] for row in rows])
        table = pa.Table.from_pylist([row | {"num_tokens": int(size)} for row, size in zip(rows, sizes, strict=True)],
                                     schema=rewrite_schema())
        write_parquet(folder / DOCUMENTS_FOLDER / part.name, table)
        num_documents += table.num_rows
        num_tokens += int(pc.sum(table["num_tokens"]).as_py() or 0)
    return {"documents": num_documents, "tokens": num_tokens}


def _originals(documents: Path, chunks: Path) -> Iterator[dict[str, Any]]:
    """The rows of a window without their tokens."""
    accepted = pq.read_table(chunks, columns=["document_id", "style", "chunk", "source"], use_threads=False,
                             filters=[("status", "=", "accepted")])
    texts: dict[tuple[str, str], dict[int, str]] = defaultdict(dict)
    for row in accepted.to_pylist():
        texts[row["document_id"], row["style"]][row["chunk"]] = row["source"]
    for row in pq.read_table(documents, columns=["id", "document_id", "style", CHUNKS], use_threads=False).to_pylist():
        own = texts[row["document_id"], row["style"]]
        yield row | {"text": join_chunks([(number, own[number]) for number in row[CHUNKS]])}


def join_chunks(chunks: list[tuple[int, str]]) -> str:
    """(number, text) of chunks as one text: neighbours as they were, a blank line where one is missing between them."""
    text = ""
    for place, (number, chunk) in enumerate(chunks):
        if place and number != chunks[place - 1][0] + 1:
            text = f"{text.rstrip()}\n\n"
        text += chunk
    return text.strip()
