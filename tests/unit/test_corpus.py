import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_ext.data.corpus import Corpus
from megatron_ext.data.documents import Document, DocumentWriter
from megatron_ext.errors import UserError

ROWS = [{"id": f"d{i}", "text": f"Documento {i}: ação\n" * i, "stem": i / 2} for i in range(7)]


def lines(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def write_shard(path, rows):
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=2)
    elif path.suffix == ".gz":
        half = len(rows) // 2  # two members: what `cat a.gz b.gz` gives
        path.write_bytes(gzip.compress(lines(rows[:half])) + gzip.compress(lines(rows[half:])))
    elif path.suffix == ".zst":
        half = len(rows) // 2
        path.write_bytes(b"".join(pa.compress(lines(part), codec="zstd", asbytes=True)
                                  for part in (rows[:half], rows[half:])))
    else:
        path.write_bytes(lines(rows))
    return path


def read_all(corpus, chunk_bytes=100):
    return [row for chunk in corpus.chunks(chunk_bytes) for batch in corpus.read(chunk) for row in batch.to_pylist()]


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl", "a.jsonl.gz", "a.jsonl.zst"])
def test_every_format_gives_the_same_rows(tmp_path, name):
    corpus = Corpus(write_shard(tmp_path / name, ROWS), score_columns={"s": "stem"})
    assert read_all(corpus) == [{"id": row["id"], "document_id": row["id"], "style": "original", "text": row["text"],
                                 "s": row["stem"]} for row in ROWS]


@settings(deadline=None, max_examples=60)
@given(st.lists(st.text(max_size=30), max_size=10), st.integers(1, 80))
def test_byte_ranges_cover_a_jsonl_file_exactly(tmp_path_factory, texts, chunk_bytes):
    path = tmp_path_factory.mktemp("corpus") / "a.jsonl"
    path.write_text("\n\n".join(json.dumps({"text": text}) for text in texts))
    rows = read_all(Corpus(path, id_column=None), chunk_bytes)
    assert [row["text"] for row in rows] == texts


def test_shards_of_a_folder_come_in_the_order_of_their_paths(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / ".cache").mkdir()
    for place in ("b/x.jsonl", "a.parquet", "c.jsonl.gz", ".cache/y.jsonl"):
        write_shard(tmp_path / place, [{"id": place, "text": "t"}])
    (tmp_path / "README.md").write_text("not a shard")
    assert [row["id"] for row in read_all(Corpus(tmp_path))] == ["a.parquet", "b/x.jsonl", "c.jsonl.gz"]


def test_documents_of_an_artifact_keep_their_style(tmp_path):
    with DocumentWriter(tmp_path, ["stem"]) as writer:
        writer.write(Document("a/qa", "a", "qa", "P?", 3, {"stem": 1.5}))
    assert read_all(Corpus(tmp_path, text_column="other", id_column="other")) == [
        {"id": "a/qa", "document_id": "a", "style": "qa", "text": "P?"}]


def test_other_columns_and_ids_from_numbers_or_content(tmp_path):
    rows = [{"n": 7, "body": "x"}, {"n": 8, "body": "x"}, {"n": 9, "body": "y"}]
    for name in ("a.jsonl", "a.parquet"):
        path = write_shard(tmp_path / name, rows)
        assert [row["id"] for row in read_all(Corpus(path, "body", "n"))] == ["7", "8", "9"]
        ids = [row["id"] for row in read_all(Corpus(path, "body", None))]
        assert ids[0] == ids[1] != ids[2]
        assert len(ids[0]) == 32


def test_lone_surrogates_become_replacement_characters(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"id": "a", "text": "x\\ud800y\\ud83d\\ude00"}\n')
    assert read_all(Corpus(path))[0]["text"] == "x\ufffdy😀"


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl", "a.jsonl.gz"])
def test_a_missing_column_is_answered_with_those_there_are(tmp_path, name):
    corpus = Corpus(write_shard(tmp_path / name, ROWS), score_columns={"edu": "edu_score"})
    with pytest.raises(UserError, match="no column 'edu_score'; its columns are: id, text, stem"):
        corpus.chunks()


@pytest.mark.parametrize(("content", "message"), [
    (b'{"id": "a", "text": "b"}\nnot json\n', r"a.jsonl, line 2 \(at byte 25\) is not JSON"),
    (b'{"id": "a", "text": "\xff"}\n', r"line 1 \(at byte 0\) is not JSON"),
    (b'{"id": "a", "text": "b"}\n["a"]\n', "not a JSON object but list"),
    (b'{"id": "a", "text": 3}\n', r"line 1 .*, id 'a': field 'text' holds '3' \(int\); needed: UTF-8 text"),
    (b'{"id": "a", "text": "b", "stem": "high"}\n', "field 'stem' holds 'high'"),
])
def test_bad_json_lines_are_named(tmp_path, content, message):
    (tmp_path / "a.jsonl").write_bytes(content)
    scores = {"stem": "stem"} if b"stem" in content else {}
    with pytest.raises(UserError, match=message):
        read_all(Corpus(tmp_path / "a.jsonl", score_columns=scores))


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl.gz", "a.jsonl.zst"])
def test_cut_off_files_are_named(tmp_path, name):
    path = write_shard(tmp_path / name, ROWS)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(UserError, match=r"a\..* (cannot be read|is damaged)"):
        read_all(Corpus(path))


def test_a_parquet_file_with_damaged_pages_or_other_types_is_named(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"id": ["a"], "text": pa.array([b"\xff"]).cast(pa.string(), safe=False)}), path)
    with pytest.raises(UserError, match=r"'text' .* cannot be read as UTF-8 text"):
        read_all(Corpus(path))
    pq.write_table(pa.table({"id": ["a"], "text": [1.5]}), path)
    with pytest.raises(UserError, match="holds double, not text"):
        read_all(Corpus(path))
    pq.write_table(pa.table({"id": ["a"], "text": ["t"], "stem": ["high"]}), path)
    with pytest.raises(UserError, match=r"row 0 .*, id 'a': column 'stem' \(string\) cannot be read as a number"):
        read_all(Corpus(path, score_columns={"stem": "stem"}))


def test_a_corpus_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        Corpus(tmp_path / "no").chunks()
    with pytest.raises(UserError, match="holds no shards"):
        Corpus(tmp_path).chunks()


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl.zst"])
def test_a_row_without_an_id_gets_one_from_its_text(tmp_path, name):
    rows = read_all(Corpus(write_shard(tmp_path / name, [{"id": "a", "text": "x"}, {"id": None, "text": "x"}])))
    made = read_all(Corpus(tmp_path / name, id_column=None))
    assert [row["id"] for row in rows] == ["a", made[0]["id"]]


def test_a_corpus_without_ids_is_told_the_mend(tmp_path):
    path = write_shard(tmp_path / "a.jsonl", [{"text": "x"}])
    with pytest.raises(UserError, match=r"no column 'id'; its columns are: text \(id_column=null makes ids from"):
        Corpus(path).chunks()
