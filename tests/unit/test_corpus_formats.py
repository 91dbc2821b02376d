"""Corpora as they are: names, links, compression, nesting and types of columns, and what is no shard."""

import bz2
import gzip
import json
import lzma
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from megatron_ext.data.corpus import Corpus, corpus_shards
from megatron_ext.data.hub import open_corpus
from megatron_ext.errors import UserError
from tests.unit.test_corpus import lines, read_all, write_shard

ROWS = [{"id": f"d{i}", "text": f"Documento {i}: ação", "stem": i / 2} for i in range(6)]


def ids(place, **values):
    return [row["id"] for row in read_all(Corpus(place, **values))]


def one(name):
    return [{"id": name, "text": "t"}]


# ---- which files


def test_links_suffixes_and_capitals_are_read(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    write_shard(outside / "a.parquet", one("a"))
    (corpus / "linked").symlink_to(outside)
    (outside / "back").symlink_to(corpus)  # a circle
    write_shard(tmp_path / "b.jsonl", one("b"))
    (corpus / "b.jsonl").symlink_to(tmp_path / "b.jsonl")
    pq.write_table(pa.Table.from_pylist(one("c")), corpus / "c.PARQUET")
    (corpus / "d.ndjson").write_bytes(lines(one("d")))
    (corpus / "e.JSON.gz").write_bytes(gzip.compress(lines(one("e"))))
    (corpus / "f.jsonl.bz2").write_bytes(bz2.compress(lines(one("f"))))
    (corpus / "g.jsonl.xz").write_bytes(lzma.compress(lines(one("g"))))
    (corpus / "h.jsonl.lz4").write_bytes(pa.compress(lines(one("h")), codec="lz4", asbytes=True))
    (corpus / "i.jsonl.ZST").write_bytes(zstandard.compress(lines(one("i"))))
    (corpus / "j.json").write_text(json.dumps(one("j"), indent=2))
    (corpus / "k.json").write_text(json.dumps(one("k")[0], indent=2))
    (corpus / "l.snappy.parquet").symlink_to(write_shard(tmp_path / "l.parquet", one("l")))
    assert sorted(ids(corpus)) == list("abcdefghijkl")


def test_what_is_no_shard_is_left_out_by_name(tmp_path):
    write_shard(tmp_path / "a.parquet", one("a"))
    for name in ("_temporary/0/b.parquet", "_SUCCESS", ".part.parquet.crc", "_metadata/c.parquet"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        write_shard(tmp_path / name, one("hidden")) if name.endswith(".parquet") else (tmp_path / name).touch()
    (tmp_path / "README.md").write_text("about")
    (tmp_path / "dataset_info.json").write_text('{"features": {"text": {"dtype": "string"}}}')
    (tmp_path / "manifest.json").write_text('{\n "files": ["a.parquet"]\n}\n')
    (tmp_path / "latest.parquet").symlink_to("a.parquet")
    found = corpus_shards(tmp_path)
    assert [path.name for path in found.paths] == ["a.parquet"]
    told = str(found)
    assert told.startswith(f"1 shard, {(tmp_path / 'a.parquet').stat().st_size:,} bytes, left out: ")
    for name in ("README.md", "dataset_info.json", "manifest.json", "_temporary", "latest.parquet (the same file as "):
        assert name in told
    assert ids(tmp_path) == ["a"]


def test_several_places_and_patterns(tmp_path):
    for name in ("2023/a.jsonl", "2024/b.jsonl", "2024/_old/c.jsonl", "other/d.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        write_shard(tmp_path / name, one(name[-7]))
    assert ids([tmp_path / "other", tmp_path / "2023"]) == ["d", "a"]
    assert ids(str(tmp_path / "20*")) == ["a", "b"]
    assert ids(str(tmp_path / "20*" / "*.jsonl")) == ["a", "b"]
    assert ids(str(tmp_path / "**" / "*.jsonl")) == ["a", "b", "d"]
    with pytest.raises(UserError, match="nothing matches this pattern"):
        ids(str(tmp_path / "19*"))
    with pytest.raises(UserError, match="does not exist"):
        ids([tmp_path / "2023", tmp_path / "no"])


@pytest.mark.parametrize(("name", "message"), [("b.jsonl.zip", "is a table packed as .zip"),
                                               ("b.parquet.gz", "is a table packed as .gz")])
def test_tables_that_cannot_be_read_are_refused_by_name(tmp_path, name, message):
    write_shard(tmp_path / "a.jsonl", one("a"))
    (tmp_path / name).write_bytes(b"PK")
    with pytest.raises(UserError, match=message):
        ids(tmp_path)
    assert ids(str(tmp_path / "*.jsonl")) == ["a"]


def test_a_link_to_nothing_and_a_folder_of_other_files_are_named(tmp_path):
    (tmp_path / "a.parquet").symlink_to("gone.parquet")
    with pytest.raises(UserError, match=r"a.parquet is a link to gone.parquet, which does not exist"):
        ids(tmp_path)
    (tmp_path / "a.parquet").unlink()
    (tmp_path / "a.csv").write_text("id,text\n")
    with pytest.raises(UserError, match=r"holds no shards; left out: a.csv \(another kind of file\); needed: "):
        ids(tmp_path)
    with pytest.raises(UserError, match=r"a.csv holds no shards: it is another kind of file"):
        ids(tmp_path / "a.csv")


def test_a_corpus_beside_a_folder_named_documents_is_read_whole(tmp_path):
    (tmp_path / "documents").mkdir()
    write_shard(tmp_path / "documents" / "a.jsonl", one("a"))
    write_shard(tmp_path / "b.jsonl", one("b"))
    assert ids(tmp_path) == ["b", "a"]


# ---- JSON


def test_json_of_any_form(tmp_path):
    long = [{"id": str(i), "text": "x" * 300_000 + "ç", "stem": i} for i in range(12)]  # over block boundaries
    forms = {"array": json.dumps(long), "indented": json.dumps(long, indent=4), "lines": lines(long).decode(),
             "objects": "\n\n".join(json.dumps(row, indent=8) for row in long), "marked": "\ufeff" + json.dumps(long),
             "empty": "[]"}
    for form, text in forms.items():
        (tmp_path / f"{form}.json").write_text(text, encoding="utf-8")
        expected = [] if form == "empty" else [row["id"] for row in long]
        place = tmp_path / f"{form}.json"
        if form == "empty":
            with pytest.raises(UserError, match="no table of documents"):
                ids(place)
        else:
            assert ids(place) == expected


@pytest.mark.parametrize(("text", "message"), [
    ('[{"id": "a", "text": "t"}, {"id": "b"', r"value 1 \(counted from 0\) is not JSON"),
    ('[{"id": "a", "text": "t"}', "damaged or cut off: its array has no end"),
    ('[{"id": "a", "text": "t"}, 5]', r"value 1 \(counted from 0\) is not a JSON object but int"),
    ('[{"id": "a", "text": "t"}, {"id": "b", "text": 7}]', r"value 1 \(counted from 0\), id 'b': field 'text' holds"),
])
def test_bad_values_of_a_json_file_are_named(tmp_path, text, message):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError, match=message):
        ids(tmp_path / "a.json")


def test_a_window_of_more_than_128_mib(tmp_path):
    parameters = zstandard.ZstdCompressionParameters(window_log=29, compression_level=1, write_content_size=False)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    data = compressor.compress(lines(ROWS)) + compressor.flush()
    assert zstandard.get_frame_parameters(data).window_size > 2**27
    (tmp_path / "a.jsonl.zst").write_bytes(data)
    assert ids(tmp_path) == [row["id"] for row in ROWS]


@pytest.mark.parametrize("suffix", ["gz", "zst", "bz2", "xz", "lz4"])
def test_cut_off_streams_are_named(tmp_path, suffix):
    pack = {"gz": gzip.compress, "zst": zstandard.compress, "bz2": bz2.compress, "xz": lzma.compress,
            "lz4": lambda data: pa.compress(data, codec="lz4", asbytes=True)}[suffix]
    packed = pack(lines(ROWS * 50))
    (tmp_path / f"a.jsonl.{suffix}").write_bytes(packed[:-9])
    with pytest.raises(UserError, match=r"a\.jsonl.* is damaged or cut off"):
        ids(tmp_path)


def test_columns_that_turn_up_late(tmp_path):
    rows = [{"id": str(i), "text": "t"} for i in range(300)] + [{"id": "x", "text": "t", "stem": 1.0}]
    write_shard(tmp_path / "a.jsonl", rows)
    found = read_all(Corpus(tmp_path / "a.jsonl", score_columns={"s": "stem"}))
    assert [row["s"] for row in found] == [None] * 300 + [1.0]
    write_shard(tmp_path / "b.jsonl", rows[:-1])  # a shard without any: another has it
    assert len(read_all(Corpus(tmp_path, score_columns={"s": "stem"}, id_column=None))) == 601
    with pytest.raises(UserError, match=r"b.jsonl has no column 'stem'; its columns are: id, text"):
        read_all(Corpus(tmp_path / "b.jsonl", score_columns={"s": "stem"}))


def test_a_shard_without_text_is_refused(tmp_path):
    write_shard(tmp_path / "a.jsonl", one("a"))
    write_shard(tmp_path / "b.jsonl", [{"id": "b"}])
    with pytest.raises(UserError, match=r"b.jsonl has no column 'text'; its columns are: id"):
        ids(tmp_path)


# ---- types


def scores_of(tmp_path, array):
    pq.write_table(pa.table({"id": [str(i) for i in range(len(array))], "text": ["t"] * len(array), "s": array}),
                   tmp_path / "a.parquet")
    return [row["s"] for row in read_all(Corpus(tmp_path / "a.parquet", score_columns={"s": "s"}))]


@pytest.mark.parametrize("array", [
    pa.array(np.array([2.7, 0.1, -3.3, 1e-4], np.float16)), pa.array([2.7, 0.1, -3.3, 1e-4], pa.float32()),
    pa.array([2.7, 0.1, -3.3, 1e-4]), pa.array(["2.7", "0.1", "-3.3", "1e-4"]),
    pa.array([Decimal("2.7000"), Decimal("0.1"), Decimal("-3.3"), Decimal("0.0001")], pa.decimal128(20, 4)),
    pa.array([Decimal("2.7000"), Decimal("0.1"), Decimal("-3.3"), Decimal("0.0001")], pa.decimal256(60, 4)),
    pa.array(["2.7", "0.1", "-3.3", "0.0001"]).dictionary_encode(), pa.array(["2.7", "0.1", "-3.3", "1e-4"],
                                                                              pa.string_view()),
], ids=lambda array: str(array.type))
def test_a_score_is_the_number_that_its_decimals_say(tmp_path, array):
    assert scores_of(tmp_path, array) == [2.7, 0.1, -3.3, 1e-4]


def test_every_float_of_32_bits_is_widened_through_its_shortest_decimal(tmp_path):
    values = np.random.default_rng(0).integers(0, 2**32, 20_000, dtype=np.uint32).view(np.float32)
    values = np.concatenate([values[np.isfinite(values)], np.float32([0.0, -0.0, 1e-45, 3.4028235e38])])
    assert scores_of(tmp_path, pa.array(values)) == [float(str(value)) for value in values]


def test_whole_numbers_of_any_size_booleans_and_nothing(tmp_path):
    assert scores_of(tmp_path, pa.array([2**60 + 1, None, -5])) == [float(2**60 + 1), None, -5.0]
    assert scores_of(tmp_path, pa.array([2**64 - 1], pa.uint64())) == [float(2**64 - 1)]
    assert scores_of(tmp_path, pa.array([True, False])) == [1.0, 0.0]
    assert scores_of(tmp_path, pa.nulls(2)) == [None, None]
    rows = [{"id": str(i), "text": "t", "s": s} for i, s in enumerate([2**60 + 1, 2**70, True, "2.5", None, 1.5])]
    write_shard(tmp_path / "a.jsonl", rows)
    found = read_all(Corpus(tmp_path / "a.jsonl", score_columns={"s": "s"}))
    assert [row["s"] for row in found] == [float(2**60 + 1), float(2**70), 1.0, 2.5, None, 1.5]
    write_shard(tmp_path / "b.jsonl", [{"id": "big", "text": "t", "s": 10**400}])
    with pytest.raises(UserError, match=r"b.jsonl, line 1 \(at byte 0\), id 'big': field 's' holds '1000"):
        read_all(Corpus(tmp_path / "b.jsonl", score_columns={"s": "s"}))


def test_ids_are_the_same_whatever_their_type(tmp_path):
    for number, array in enumerate([pa.array([7, 2**53 + 1]), pa.array(["7", str(2**53 + 1)]),
                                    pa.array([7, 2**53 + 1], pa.uint64())]):
        pq.write_table(pa.table({"id": array, "text": ["a", "b"]}), tmp_path / f"{number}.parquet")
        assert ids(tmp_path / f"{number}.parquet") == ["7", str(2**53 + 1)]
    pq.write_table(pa.table({"id": [7.0, 8.0], "text": ["a", "b"]}), tmp_path / "float.parquet")
    write_shard(tmp_path / "float.jsonl", [{"id": 7.0, "text": "a"}, {"id": 8, "text": "b"}])
    assert ids(tmp_path / "float.parquet") == ids(tmp_path / "float.jsonl") == ["7", "8"]
    pq.write_table(pa.table({"id": [7.5], "text": ["a"]}), tmp_path / "float.parquet")
    with pytest.raises(UserError, match=r"row 0 .* cannot be read as an id"):
        ids(tmp_path / "float.parquet")


@pytest.mark.parametrize("kind", [pa.string_view(), pa.large_string(), pa.binary(), pa.dictionary(pa.int32(),
                                                                                                 pa.string())], ids=str)
def test_texts_of_every_type_with_a_rule(tmp_path, kind):
    table = pa.table({"id": pa.array(["a", "b", "c"]), "text": pa.array(["ação", None, "c"]), "s": [1.0, 2.0, 0.0]})
    table = table.set_column(1, "text", table["text"].cast(kind))
    pq.write_table(table, tmp_path / "a.parquet")
    corpus = Corpus(tmp_path / "a.parquet", score_columns={"s": "s"})
    found = [row["text"] for chunk in corpus.chunks()
             for batch in corpus.read(chunk, lambda scores: scores.column("s").to_numpy() > 0)
             for row in batch.to_pylist()]
    assert found == ["ação", None]


def test_nested_columns(tmp_path):
    rows = [{"doc": {"id": "a", "body": "t"}, "metadata": {"edu": {"score": 2.5}}, "dotted.name": 1.0},
            {"doc": {"id": "b", "body": "u"}, "metadata": None, "dotted.name": 2.0}]
    write_shard(tmp_path / "a.jsonl", rows)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    mapped = pa.table({"doc": [row["doc"] for row in rows], "dotted.name": [1.0, 2.0],
                       "metadata": pa.array([[("edu.score", 2.5)], None], pa.map_(pa.string(), pa.float32()))})
    pq.write_table(mapped, tmp_path / "b.parquet")
    for name in ("a.jsonl", "a.parquet", "b.parquet"):
        found = read_all(Corpus(tmp_path / name, "doc.body", "doc.id", {"edu": "metadata.edu.score",
                                                                        "dotted": "dotted.name"}))
        assert [(row["id"], row["text"], row["edu"], row["dotted"]) for row in found] == [("a", "t", 2.5, 1.0),
                                                                                          ("b", "u", None, 2.0)]
    with pytest.raises(UserError, match=r"no column 'metadata.stem'; its columns are: doc.id, doc.body, metadata.edu"):
        read_all(Corpus(tmp_path / "a.parquet", "doc.body", "doc.id", {"stem": "metadata.stem"}))


def test_two_columns_of_one_name(tmp_path):
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["t"]), pa.array([1.0]), pa.array([2.0])],
                                 names=["id", "text", "s", "s"])
    pq.write_table(table, tmp_path / "a.parquet")
    assert ids(tmp_path) == ["a"]
    with pytest.raises(UserError, match=r"a.parquet has 2 columns named 's'"):
        read_all(Corpus(tmp_path, score_columns={"s": "s"}))


def test_a_bad_score_is_named_by_file_row_and_id(tmp_path):
    table = pa.table({"id": [f"d{i}" for i in range(3_000)], "text": ["t"] * 3_000,
                      "s": ["1.5"] * 2_500 + ["alto"] + ["2"] * 499})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=1_000)
    with pytest.raises(UserError, match=r"a.parquet, row 2,500 \(counted from 0\), id 'd2500': column 's'"):
        read_all(Corpus(tmp_path, score_columns={"s": "s"}))


def test_types_may_change_between_shards(tmp_path):
    for number, array in enumerate([pa.array([1]), pa.array([1.5], pa.float32()), pa.nulls(1), pa.array(["3"])]):
        pq.write_table(pa.table({"id": [str(number)], "text": ["t"], "s": array}), tmp_path / f"{number}.parquet")
    found = read_all(Corpus(tmp_path, score_columns={"s": "s"}))
    assert [row["s"] for row in found] == [1.0, 1.5, None, 3.0]
    hub = open_corpus(f"hf://{tmp_path}", "text", "id", {"s": "s"})
    assert read_all(hub) == found


def test_a_damaged_shard_of_a_data_set_is_one_line(tmp_path):
    for number in range(3):
        write_shard(tmp_path / f"{number}.parquet", one(str(number)))
    data = (tmp_path / "1.parquet").read_bytes()
    (tmp_path / "1.parquet").write_bytes(data[:-20])
    with pytest.raises(UserError, match=r"1.parquet cannot be read as Parquet"):
        read_all(open_corpus(f"hf://{tmp_path}", "text", "id", {}))


def test_what_datasets_alone_can_read_is_streamed(tmp_path):
    for folder, other in (("good", "c,t,2\n"), ("bad", "c,t,alto\n")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.csv").write_text("id,text,s\na,t,1.5\nb,u,\n")
        (tmp_path / folder / "b.csv").write_text("id,text,s\n" + other)
    corpus = open_corpus(f"hf://{tmp_path / 'good'}", "text", "id", {"s": "s"})
    assert [(row["id"], row["s"]) for row in read_all(corpus)] == [("a", 1.5), ("b", None), ("c", 2.0)]
    with pytest.raises(UserError, match=r"hf://.*(row|cannot be read)"):
        read_all(open_corpus(f"hf://{tmp_path / 'bad'}", "text", "id", {"s": "s"}))


def test_rewrites_in_a_plain_corpus_keep_what_they_are(tmp_path):
    rows = [{"id": "a/qa", "document_id": "a", "style": "qa", "text": "P?", "chunks": [0, 2]},
            {"id": "b", "document_id": None, "style": None, "text": "t", "chunks": None}]
    for name in ("a.parquet", "a.jsonl"):
        write_shard(tmp_path / name, rows)
        assert read_all(Corpus(tmp_path / name, with_chunks=True)) == [
            rows[0], {"id": "b", "document_id": "b", "style": "original", "text": "t", "chunks": None}]
    write_shard(tmp_path / "b.parquet", [{"id": "a", "text": "t", "chunks": "another's"}])
    assert read_all(Corpus(tmp_path / "b.parquet", with_chunks=True))[0]["chunks"] is None
