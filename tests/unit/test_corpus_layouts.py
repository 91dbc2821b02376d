"""The same documents in twenty kinds of folder: the same ids and tokens are selected, and tokenized."""

import bz2
import gzip
import json
import lzma
import random
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from megatron_ext.data.corpus import Corpus
from megatron_ext.data.documents import Document, DocumentWriter, read_documents
from megatron_ext.data.tokenization import TokenizeSettings, tokenize_corpus
from tests.unit.selecting import select
from tests.unit.tokenizer_folders import byte_level_tokenizer

RULE = "(stem + edu > 4 and lang in ['pt', 'gl']) or edu is null"
FLAT = {"stem": "stem", "edu": "edu", "lang": "lang"}
PACKERS = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstandard.compress,
           ".lz4": lambda data: pa.compress(data, codec="lz4", asbytes=True), "": bytes}

scores = st.one_of(st.none(), st.integers(-99, 99).map(lambda tenths: tenths / 10))
rows_of = st.lists(st.tuples(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30), scores, scores,
                             st.sampled_from(["pt", "gl", "en", None])), min_size=1, max_size=25)


def lines(rows, drop_nulls=False):
    kept = [{key: value for key, value in row.items() if value is not None or not drop_nulls} for row in rows]
    return "".join(json.dumps(row, ensure_ascii=drop_nulls) + "\n" for row in kept).encode()


def table(rows, score=None, text=None):
    score, text = score or pa.float64(), text or pa.string()

    def array(name):
        values = [row[name] for row in rows]
        if name in ("stem", "edu"):
            if pa.types.is_decimal(score):
                values = [value if value is None else Decimal(str(value)) for value in values]
            if score == pa.string():
                values = [value if value is None else str(value) for value in values]
            if score == pa.float16():
                values = [value if value is None else np.float16(value) for value in values]
            return pa.array(values, score)
        return pa.array(values, pa.string()).cast(text if name == "text" else pa.string())

    return pa.table({name: array(name) for name in ("id", "text", "stem", "edu", "lang")})


def parquet(folder, rows, pieces=1, row_group_size=1_000, name="{}.parquet", **types):
    for number in range(pieces):
        path = folder / name.format(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table(rows[number::pieces], **types), path, row_group_size=row_group_size)
    return folder, FLAT


def packed(suffix, name="{}.jsonl", pieces=2, drop_nulls=False):
    def write(folder, rows):
        for number in range(pieces):
            (folder / (name.format(number) + suffix)).write_bytes(PACKERS[suffix](lines(rows[number::pieces],
                                                                                        drop_nulls)))
        return folder, FLAT
    return write


def linked(folder, rows):
    for number in range(2):
        parquet(folder.with_name(f"{folder.name}-{number}"), rows[number::2])
    (folder / "link").symlink_to(folder.with_name(f"{folder.name}-0"))
    (folder / "again").symlink_to(folder.with_name(f"{folder.name}-0"))
    (folder / "link.parquet").symlink_to(folder.with_name(f"{folder.name}-1") / "0.parquet")
    return folder, FLAT


def spark(folder, rows):
    parquet(folder, rows, pieces=3, name="part-{}.snappy.parquet")
    (folder / "_temporary").mkdir()
    pq.write_table(table(rows), folder / "_temporary" / "0.parquet")
    (folder / "_SUCCESS").touch()
    (folder / ".part-0.snappy.parquet.crc").write_bytes(b"crc")
    return folder, FLAT


def data_set(folder, rows):
    parquet(folder, rows, pieces=2, name="data/train-{}-of-2.parquet")
    (folder / "README.md").write_text("about")
    (folder / "dataset_info.json").write_text('{"splits": {}}')
    return folder, FLAT


def hub(folder, rows):
    data_set(folder, rows)
    return f"hf://{folder}", FLAT


def nested(rows):
    return [{"id": row["id"], "text": row["text"], "metadata": {name: row[name] for name in FLAT}} for row in rows]


def nested_parquet(folder, rows):
    kind = pa.struct({"stem": pa.float32(), "edu": pa.float64(), "lang": pa.string()})
    schema = pa.schema({"id": pa.string(), "text": pa.large_string(), "metadata": kind})
    pq.write_table(pa.Table.from_pylist(nested(rows), schema=schema), folder / "a.parquet")
    return folder, {name: f"metadata.{name}" for name in FLAT}


def nested_json(folder, rows):
    (folder / "a.json").write_text(json.dumps(nested(rows), indent=1))
    return folder, {name: f"metadata.{name}" for name in FLAT}


def mixed(folder, rows):
    parquet(folder / "b", rows[::2], score=pa.float32())
    (folder / "a.ndjson").write_bytes(lines(rows[1::2], drop_nulls=True))
    return folder, FLAT


def several(folder, rows):
    parquet(folder / "2023", rows[::2])
    packed(".gz")(folder, rows[1::2])
    return [str(folder / "2023"), str(folder / "*.gz")], FLAT


def artifact(folder, rows):
    """What a selection or a rewriting leaves, and others things beside it."""
    with DocumentWriter(folder, ["stem", "edu"]) as writer:
        for row in rows:
            writer.write(Document(row["id"], row["id"], "original", row["text"], 1, {"stem": row["stem"],
                                                                                      "edu": row["edu"]}))
    written = pq.read_table(folder / "documents" / "part-00000.parquet")
    langs = pa.array([row["lang"] for row in rows], pa.string())
    pq.write_table(written.append_column("lang", langs), folder / "documents" / "part-00000.parquet")
    (folder / "rejected").mkdir()
    pq.write_table(table(rows), folder / "rejected" / "part-00000.parquet")
    return folder, FLAT


LAYOUTS = {
    "one table": parquet,
    "small row groups": lambda folder, rows: parquet(folder, rows, 3, 2),
    "capitals": lambda folder, rows: parquet(folder, rows, 2, name="{}.PARQUET"),
    "float32": lambda folder, rows: parquet(folder, rows, 2, score=pa.float32()),
    "float16": lambda folder, rows: parquet(folder, rows, 2, score=pa.float16()),
    "decimals": lambda folder, rows: parquet(folder, rows, score=pa.decimal128(12, 3)),
    "numbers as text": lambda folder, rows: parquet(folder, rows, score=pa.string()),
    "string views": lambda folder, rows: parquet(folder, rows, text=pa.string_view()),
    "bytes": lambda folder, rows: parquet(folder, rows, text=pa.binary()),
    "links": linked, "spark": spark, "data set": data_set, "hub": hub, "nested tables": nested_parquet,
    "nested json": nested_json, "mixed": mixed, "several places": several, "artifact": artifact,
    "lines": packed(""), "lines without nulls": packed("", drop_nulls=True, pieces=4),
    "json of lines": packed(".gz", name="{}.JSON", pieces=1),
} | {f"lines{suffix}": packed(suffix) for suffix in PACKERS if suffix}


def rows_from(drawn, seed):
    rows = [{"id": f"d{number}", "text": f"{number} {text}", "stem": stem, "edu": edu, "lang": lang}
            for number, (text, stem, edu, lang) in enumerate(drawn)]
    # A table of a folder must have every column somewhere.
    rows.append({"id": "full", "text": "texto inteiro", "stem": 2.7, "edu": 1.3, "lang": "pt"})
    return random.Random(seed).sample(rows, len(rows))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return byte_level_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@settings(deadline=None, max_examples=3, phases=[Phase.generate],
          suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(drawn=rows_of, seed=st.integers(0, 99))
def test_twenty_kinds_of_folder_give_the_same_documents(tokenizer, tmp_path_factory, drawn, seed, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    root = tmp_path_factory.mktemp("layouts")
    found, hashes = {}, {}
    for number, (name, write) in enumerate(LAYOUTS.items()):
        folder = root / str(number)
        folder.mkdir()
        place, columns = write(folder, rows_from(drawn, seed + number))
        made = select(place, tokenizer, root / f"out-{number}", scores=columns, rule=RULE, budget_tokens=60,
                      on_shortage="allow")
        found[name] = [(document.id, document.text, document.num_tokens, dict(document.scores))
                       for document in read_documents(made.path)]
        hashes[name] = made.content_hash
    assert len(LAYOUTS) >= 20
    expected = found["one table"]
    assert {name for name, documents in found.items() if documents != expected} == set()
    assert len(set(hashes.values())) == 1


def test_the_same_documents_are_tokenized_to_the_same_bytes(tokenizer, tmp_path):
    drawn = [(f"texto {number}", 1.5, None, "pt") for number in range(30)]
    rows, bins = rows_from(drawn, 0), {}
    for number, (name, write) in enumerate(LAYOUTS.items()):
        if name == "hub":
            continue
        (tmp_path / str(number)).mkdir()
        place, _ = write(tmp_path / str(number), rows)
        shards = Corpus(place).shards()
        made = tokenize_corpus(TokenizeSettings(documents=place, tokenizer=tokenizer, workers=1),
                               tmp_path / f"out-{number}")
        if len(shards) == 1:  # the order of the documents is that of the shards
            bins[name] = (made.path / "train.bin").read_bytes()
        assert made.counts["train"]["documents"] == len(rows)
    assert len(bins) >= 6
    assert len(set(bins.values())) == 1


def test_workers_and_machines_do_not_matter(tokenizer, tmp_path):
    rows = rows_from([(f"texto {number}", number / 10, 2.0, "pt") for number in range(60)], 1)
    hashes = set()
    for name in ("mixed", "float32"):
        folder = tmp_path / name
        folder.mkdir()
        place, columns = LAYOUTS[name](folder, rows)
        hashes |= {select(place, tokenizer, Path(f"{folder}-{workers}"), scores=columns, rule=RULE, workers=workers,
                          budget_tokens=200).content_hash for workers in (1, 2)}
    assert len(hashes) == 1
