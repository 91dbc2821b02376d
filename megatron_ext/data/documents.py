"""Documents: the rows that selection and rewriting hand on, in `documents/part-*.parquet` of their artifacts.

Columns: `id` (unique in the artifact: the corpus id, or `<document_id>/<style>` for a rewrite), `document_id` (the
corpus document it comes from), `style` ("original", "easy", "medium", "hard", "qa", …), `text`, `num_tokens` (counted
by the training tokenizer), in a selection the scores by their short names (float64, or string where the rule compares
text), and in rewrites `chunks`: the numbers of the source chunks whose rewrites the text joins, in order.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import pyarrow as pa
import pyarrow.parquet as pq

from megatron_ext.errors import UserError
from megatron_ext.files import replacing

DOCUMENTS_FOLDER = "documents"
FIELDS = {"id": pa.string(), "document_id": pa.string(), "style": pa.string(), "text": pa.string(),
          "num_tokens": pa.int64()}
ORIGINAL = "original"
"""The style of a document that was not rewritten."""
CHUNKS = "chunks"
"""Column of rewrites alone; as `chunk` in the artifact's `chunks/`."""
CHUNKS_TYPE = pa.list_(pa.int64())

MAX_PART_ROWS = 20_000
MAX_PART_BYTES = 64 * 2**20  # of text
ROW_GROUP_ROWS = 1_000


@dataclass(frozen=True)
class Document:
    """One row: an original document or a rewrite of one."""

    id: str
    document_id: str
    style: str
    text: str
    num_tokens: int
    scores: Mapping[str, float | str | None] = field(default_factory=dict)


def document_schema(score_names: Sequence[str] = (), labels: Collection[str] = ()) -> pa.Schema:
    """The Arrow schema of a documents folder whose rows carry these scores, of which `labels` are text."""
    scores = {name: pa.string() if name in labels else pa.float64() for name in score_names}
    return pa.schema({**FIELDS, **scores})


def rewrite_schema() -> pa.Schema:
    """The Arrow schema of the documents folder of a rewrites artifact."""
    return document_schema().append(pa.field(CHUNKS, CHUNKS_TYPE))


def document_parts(artifact: Path) -> list[Path]:
    """The Parquet files of an artifact's documents, in order. Raises UserError when there are none."""
    folder = artifact / DOCUMENTS_FOLDER
    parts = sorted(folder.glob("part-*.parquet"))
    if not parts:
        raise UserError(f"{artifact} holds no documents: no part-*.parquet in {folder}")
    return parts


def read_documents(artifact: Path) -> Iterator[Document]:
    """The documents of a selection or rewrites artifact, in their order, streaming.

    Raises UserError when a column is missing.
    """
    for batch in read_document_batches(artifact):
        score_names = [name for name in batch.schema.names if name not in (*FIELDS, CHUNKS)]
        for row in batch.to_pylist():
            scores = {name: row[name] for name in score_names}
            yield Document(**{name: row[name] for name in FIELDS}, scores=scores)


def read_document_batches(artifact: Path, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
    """The same rows as Arrow record batches of at most 1,000 rows; `columns` limits what is read."""
    for part in document_parts(artifact):
        with pq.ParquetFile(part) as file:
            missing = [name for name in columns or FIELDS if name not in file.schema_arrow.names]
            if missing:
                raise UserError(f"{part} has no column {', '.join(missing)}; it has "
                                f"{', '.join(file.schema_arrow.names)}")
            yield from file.iter_batches(batch_size=ROW_GROUP_ROWS, columns=columns, use_threads=False)


def num_documents(artifact: Path) -> int:
    """Rows of an artifact's documents, from the footers alone."""
    return sum(pq.read_metadata(part).num_rows for part in document_parts(artifact))


class DocumentWriter:
    """Write documents into `<artifact>/documents/part-*.parquet`; parts appear whole or not at all.

    Where a part ends depends on the rows alone, so equal rows give equal bytes. A run that starts again writes the
    same parts over those that an interrupted one left.

        with DocumentWriter(folder) as writer:
            writer.write(Document(id="a/qa", document_id="a", style="qa", text="…", num_tokens=7))
    """

    def __init__(self, artifact: Path, score_names: Sequence[str] = ()) -> None:
        self.num_documents = 0
        self._folder = artifact / DOCUMENTS_FOLDER
        self._folder.mkdir(parents=True, exist_ok=True)
        self._schema = document_schema(score_names)
        self._rows: list[dict[str, object]] = []
        self._num_bytes = 0
        self._num_parts = 0

    def write(self, document: Document) -> None:
        """Append one document."""
        self._rows.append({name: getattr(document, name) for name in FIELDS} | dict(document.scores))
        self._num_bytes += len(document.text.encode())
        self.num_documents += 1
        if len(self._rows) >= MAX_PART_ROWS or self._num_bytes >= MAX_PART_BYTES:
            self._write_part()

    def close(self) -> None:
        """Write what is left; without any document, one part without rows."""
        if self._rows or not self._num_parts:
            self._write_part()

    def __enter__(self) -> DocumentWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        if kind is None:
            self.close()

    def _write_part(self) -> None:
        path = self._folder / f"part-{self._num_parts:05d}.parquet"
        write_parquet(path, pa.Table.from_pylist(self._rows, schema=self._schema))
        self._rows, self._num_bytes = [], 0
        self._num_parts += 1


def write_parquet(path: Path, table: pa.Table, row_group_rows: int = ROW_GROUP_ROWS) -> None:
    """Write one Parquet file atomically; equal tables give equal bytes."""
    write_row_groups(path, table.schema, (table.slice(start, row_group_rows)
                                          for start in range(0, len(table), row_group_rows)))


def write_row_groups(path: Path, schema: pa.Schema, groups: Iterable[pa.Table]) -> None:
    """The same with tables that come one after the other; each is a row group."""
    # A dictionary of texts and ids, which hardly ever repeat, costs time and saves nothing.
    repeated = [name for name in ("style",) if name in schema.names]
    with (replacing(path) as temporary,
          pq.ParquetWriter(temporary, schema, compression="zstd", use_dictionary=repeated) as writer):
        for group in groups:
            writer.write_table(group)
