import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_ext.data import documents
from megatron_ext.data.documents import (
    Document,
    DocumentWriter,
    document_parts,
    num_documents,
    read_document_batches,
    read_documents,
)
from megatron_ext.errors import UserError

texts = st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=20)


def make_documents(values, **scores):
    return [Document(f"d{i}/qa", f"d{i}", "qa", text, i, scores) for i, text in enumerate(values)]


@settings(deadline=None, max_examples=30)
@given(texts)
def test_what_is_written_is_read(tmp_path_factory, values):
    folder = tmp_path_factory.mktemp("artifact")
    rows = make_documents(values, stem=2.5)
    with DocumentWriter(folder, ["stem"]) as writer:
        for row in rows:
            writer.write(row)
    assert list(read_documents(folder)) == rows
    assert num_documents(folder) == writer.num_documents == len(rows)


def test_parts_end_by_rows_and_by_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(documents, "MAX_PART_ROWS", 3)
    monkeypatch.setattr(documents, "MAX_PART_BYTES", 10)
    with DocumentWriter(tmp_path) as writer:
        for row in make_documents(["a", "b", "c", "não mais", "d", "e"]):
            writer.write(row)
    assert [pq.read_metadata(part).num_rows for part in document_parts(tmp_path)] == [3, 2, 1]


def test_an_interrupted_writer_leaves_no_half_part_and_is_repeated_exactly(tmp_path, monkeypatch):
    monkeypatch.setattr(documents, "MAX_PART_ROWS", 2)
    rows = make_documents("abcde")
    with pytest.raises(RuntimeError), DocumentWriter(tmp_path) as writer:
        for row in rows[:3]:
            writer.write(row)
        raise RuntimeError
    before = document_parts(tmp_path)[0].read_bytes()
    assert num_documents(tmp_path) == 2
    with DocumentWriter(tmp_path) as writer:
        for row in rows:
            writer.write(row)
    assert document_parts(tmp_path)[0].read_bytes() == before
    assert list(read_documents(tmp_path)) == rows


def test_a_folder_without_documents_or_columns_is_refused(tmp_path):
    with pytest.raises(UserError, match="no documents"):
        list(read_documents(tmp_path))
    (tmp_path / "documents").mkdir()
    pq.write_table(pa.table({"id": ["a"], "texto": ["b"]}), tmp_path / "documents" / "part-0.parquet")
    with pytest.raises(UserError, match=r"no column text; it has id, texto"):
        list(read_document_batches(tmp_path, ["text"]))
