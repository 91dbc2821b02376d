import json
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_ext.artifacts import Artifact
from megatron_ext.data import tokenization
from megatron_ext.data.documents import CHUNKS, Document, DocumentWriter, rewrite_schema
from megatron_ext.data.indexed import IndexedReader
from megatron_ext.data.token_bytes import token_bytes
from megatron_ext.data.tokenization import TokenizeSettings, is_validation, tokenize_corpus
from megatron_ext.data.tokenizers import load_tokenizer
from megatron_ext.errors import UserError
from megatron_ext.parts import Merge, Part
from tests.unit.tokenizer_folders import TEXTS, byte_level_tokenizer, sentencepiece_tokenizer

ROOT = Path(__file__).parents[2]
ROWS = [{"id": f"d{i}", "text": text} for i, text in enumerate([*TEXTS, "", "<|endoftext|>", "\n", ""])]


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizers")
    return {"tokenizers": byte_level_tokenizer(folder / "bpe"), "sentencepiece": sentencepiece_tokenizer(folder / "sp")}


def write_jsonl(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def tokenize(documents, tokenizer, output, **values):
    return tokenize_corpus(TokenizeSettings(documents=documents, tokenizer=tokenizer, workers=values.pop("workers", 1),
                                            **values), output)


def megatron_files(folder, texts, tokenizer, append_eod=True):
    """What Megatron-LM's preprocess_data.py writes: its own builder, fed by its own rule for empty documents."""
    megatron = pytest.importorskip("megatron.core.datasets.indexed_dataset")
    opened = load_tokenizer(tokenizer)
    builder = megatron.IndexedDatasetBuilder(str(folder / "x.bin"),
                                             dtype=megatron.DType.optimal_dtype(opened.vocab_size))
    for text in texts:
        ids = opened.encoder.encode(pa.array([text])).ids.tolist()
        ids += [opened.eod_token_id] if ids and append_eod else []
        builder.add_document(ids, [len(ids)] if ids else [])
    builder.finalize(str(folder / "x.idx"))
    return (folder / "x.bin").read_bytes(), (folder / "x.idx").read_bytes()


@pytest.mark.parametrize("encoder", ["tokenizers", "sentencepiece"])
@settings(deadline=None, max_examples=20)
@given(texts=st.lists(st.text(max_size=20), max_size=8), append_eod=st.booleans())
def test_the_files_are_megatrons(tokenizers, tmp_path_factory, encoder, texts, append_eod):
    folder = tmp_path_factory.mktemp("data")
    path = write_jsonl(folder / "a.jsonl", [{"text": text} for text in texts])
    artifact = tokenize(path, tokenizers[encoder], folder / "out", id_column=None, append_eod=append_eod)
    # Lone surrogates: stock Megatron stops at them, we read U+FFFD.
    texts = ["".join("\ufffd" if "\ud800" <= c <= "\udfff" else c for c in text) for text in texts]
    expected = megatron_files(folder, texts, tokenizers[encoder], append_eod)
    assert ((artifact.path / "train.bin").read_bytes(), (artifact.path / "train.idx").read_bytes()) == expected
    assert artifact.counts["encoder"] == encoder


def test_result_is_independent_of_shards_and_chunks(tokenizers, tmp_path, monkeypatch):
    one = tokenize(write_jsonl(tmp_path / "a.jsonl", ROWS), tokenizers["tokenizers"], tmp_path / "one",
                   valid_fraction=0.3)
    for number, start in enumerate(range(0, len(ROWS), 5)):
        write_jsonl(tmp_path / "many" / f"{number:02d}.jsonl", ROWS[start:start + 5])
    monkeypatch.setattr(tokenization, "CHUNK_BYTES", 300)
    many = tokenize(tmp_path / "many", tokenizers["tokenizers"], tmp_path / "many-out", valid_fraction=0.3)
    for name in ("train.bin", "train.idx", "valid.bin", "valid.idx", "counts.json", "token_bytes.npy"):
        assert (many.path / name).read_bytes() == (one.path / name).read_bytes(), name
    assert pq.read_table(many.path / "sequences.parquet") == pq.read_table(one.path / "sequences.parquet")


def test_every_sequence_can_be_traced_and_counts_are_exact(tokenizers, tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", ROWS)
    artifact = tokenize(path, tokenizers["tokenizers"], tmp_path / "out", valid_fraction=0.4, split_seed=3)
    opened, texts = load_tokenizer(tokenizers["tokenizers"]), {row["id"]: row["text"] for row in ROWS}
    counts = np.load(artifact.path / "token_bytes.npy")
    assert np.array_equal(counts, token_bytes(tokenizers["tokenizers"] / "tokenizer.json"))
    rows = pq.read_table(artifact.path / "sequences.parquet").to_pylist()
    assert [row["id"] for row in rows] == [row["id"] for row in ROWS]
    for row in rows:
        reader = IndexedReader(artifact.path / row["split"])
        first, last = reader.document_boundaries[row["document"]:row["document"] + 2]
        assert list(range(first, last)) == ([] if row["sequence"] is None else [row["sequence"]])
        if row["sequence"] is None:
            assert (texts[row["id"]], row["num_tokens"], row["num_bytes"]) == ("", 0, 0)
            continue
        ids = reader.read(row["sequence"])
        assert opened.encoder.decode(ids.tolist()) == texts[row["id"]] + "<|endoftext|>"
        assert (row["num_tokens"], row["num_bytes"]) == (len(ids), len(texts[row["id"]].encode()))
        assert (row["split"] == "valid") == is_validation(row["document_id"], 3, 0.4)
        if "<|" not in texts[row["id"]]:
            assert counts[ids].sum() == row["num_bytes"]
    for split in ("train", "valid"):
        reader, counted = IndexedReader(artifact.path / split), artifact.counts[split]
        assert (reader.num_documents, reader.num_tokens) == (counted["documents"], counted["tokens"])
        assert len(reader) == counted["documents"] - counted["empty_documents"]
    assert artifact.counts["train"]["empty_documents"] + artifact.counts["valid"]["empty_documents"] == 2
    assert artifact.counts["eod_token_id"] == 0


def test_rewrites_name_the_chunks_they_are_made_of(tokenizers, tmp_path):
    rows = [{"id": f"{number}/easy", "document_id": str(number), "style": "easy", "text": "texto", "num_tokens": 1,
             CHUNKS: chunks} for number, chunks in enumerate([[0, 2], [1], [0, 1, 2]])]
    (tmp_path / "rewrites" / "documents").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows, rewrite_schema()), tmp_path / "rewrites/documents/part-00000.parquet")
    rewrites = tokenize(tmp_path / "rewrites", tokenizers["tokenizers"], tmp_path / "a")
    assert pq.read_table(rewrites.path / "sequences.parquet")[CHUNKS].to_pylist() == [[0, 2], [1], [0, 1, 2]]
    originals = tokenize(write_jsonl(tmp_path / "a.jsonl", ROWS[:2]), tokenizers["tokenizers"], tmp_path / "b")
    assert pq.read_table(originals.path / "sequences.parquet")[CHUNKS].to_pylist() == [None, None]


def test_rewrites_are_on_the_side_of_their_original(tokenizers, tmp_path):
    with DocumentWriter(tmp_path / "rewrites") as writer:
        for number in range(200):
            for style in ("easy", "qa"):
                writer.write(Document(f"{number}/{style}", str(number), style, "texto", 1))
    artifact = tokenize(tmp_path / "rewrites", tokenizers["tokenizers"], tmp_path / "out", valid_fraction=0.25)
    rows = pq.read_table(artifact.path / "sequences.parquet").to_pylist()
    sides = {(row["document_id"], row["split"]) for row in rows}
    assert len(sides) == 200
    assert {row["style"] for row in rows} == {"easy", "qa"}
    assert 30 <= sum(split == "valid" for _, split in sides) <= 70


@pytest.mark.parametrize("count", [1, 3, 12])  # of fewer chunks: some parts are empty then
def test_merged_parts_are_what_one_machine_makes(tokenizers, tmp_path, monkeypatch, count):
    monkeypatch.setattr(tokenization, "CHUNK_BYTES", 40)
    corpus = write_jsonl(tmp_path / "corpus" / "a.jsonl", ROWS[:4]).parent
    settings = TokenizeSettings(documents=corpus, tokenizer=tokenizers["tokenizers"], valid_fraction=0.3, workers=1)
    whole = tokenize_corpus(settings, tmp_path / "whole")
    with pytest.raises(UserError, match=f"{count} of {count} parts are missing"):
        tokenize_corpus(settings, tmp_path / "merged", Merge(count))
    for index in range(count):
        tokenize_corpus(settings, tmp_path / "merged", Part(index, count))
    merged = tokenize_corpus(settings, tmp_path / "merged", Merge(count))
    assert merged.content_hash == whole.content_hash
    assert merged.counts == whole.counts
    assert merged.manifest["request"] == whole.manifest["request"]


def test_a_source_of_some_styles_holds_these_alone(tokenizers, tmp_path):
    with DocumentWriter(tmp_path / "rewrites") as writer:
        for number in range(3):
            for style in ("easy", "hard", "qa"):
                writer.write(Document(f"{number}/{style}", str(number), style, f"texto {style}", 1))
    tokens = tokenize(tmp_path / "rewrites", tokenizers["tokenizers"], tmp_path / "tokens", styles=["qa", "easy"])
    rows = pq.read_table(tokens.path / "sequences.parquet").to_pylist()
    assert [row["id"] for row in rows] == ["0/easy", "0/qa", "1/easy", "1/qa", "2/easy", "2/qa"]
    assert tokens.counts["train"]["documents"] == 6


def test_an_interrupted_run_goes_on_with_the_parts_it_lacks(tokenizers, tmp_path, monkeypatch):
    path = write_jsonl(tmp_path / "a.jsonl", ROWS)
    monkeypatch.setattr(tokenization, "CHUNK_BYTES", 300)
    whole = tokenize(path, tokenizers["tokenizers"], tmp_path / "whole", valid_fraction=0.3)
    made, make_part = [], tokenization._make_part

    def interrupted(task):
        if len(made) == 3:
            raise KeyboardInterrupt
        made.append(task.part.name)
        return make_part(task)

    monkeypatch.setattr(tokenization, "_make_part", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tokenize(path, tokenizers["tokenizers"], tmp_path / "out", valid_fraction=0.3)
    assert not (tmp_path / "out").exists()
    remaining = []
    monkeypatch.setattr(tokenization, "_make_part", lambda task: remaining.append(task.part.name) or make_part(task))
    resumed = tokenize(path, tokenizers["tokenizers"], tmp_path / "out", valid_fraction=0.3)
    assert resumed.content_hash == whole.content_hash
    assert not set(made) & set(remaining)
    assert sorted(path.name for path in resumed.path.iterdir()) == sorted([*resumed.manifest["files"], "manifest.json"])


def test_kill_9_then_the_same_command(tokenizers, tmp_path):
    for number in range(30):
        write_jsonl(tmp_path / "corpus" / f"{number:02d}.jsonl", [{"id": f"{number}-{i}", "text": TEXTS[i % 4] * 8}
                                                                 for i in range(400)])
    whole = tokenize(tmp_path / "corpus", tokenizers["tokenizers"], tmp_path / "whole")
    command = [sys.executable, "-m", "tools.tokenize_corpus", "--output", str(tmp_path / "out"),
               f"documents={tmp_path / 'corpus'}", f"tokenizer={tokenizers['tokenizers']}", "workers=2"]
    parts = tmp_path / "out.partial" / "parts"
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    while not list(parts.glob("*.parquet")):
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.communicate()  # ends when the workers, which hold the pipe too, have ended
    assert not (tmp_path / "out").exists()
    assert 0 < len(list(parts.glob("*.parquet"))) < 30
    resumed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "were done before, going on" in resumed.stdout
    assert Artifact.open(tmp_path / "out").content_hash == whole.content_hash


@pytest.mark.slow
def test_ten_kills_at_random_moments(tokenizers, tmp_path):
    generator = random.Random(0)
    rows = [{"id": str(i), "text": TEXTS[i % len(TEXTS)] * 8} for i in range(20_000)]
    for number in range(40):
        write_jsonl(tmp_path / "corpus" / f"{number:02d}.jsonl", rows[number::40])
    values = {"valid_fraction": 0.2, "encoder": "tokenizers"}
    whole = tokenize(tmp_path / "corpus", tokenizers["tokenizers"], tmp_path / "whole", **values)
    command = [sys.executable, "-m", "tools.tokenize_corpus", "--output", str(tmp_path / "out"),
               f"documents={tmp_path / 'corpus'}", f"tokenizer={tokenizers['tokenizers']}",
               *(f"{key}={value}" for key, value in values.items())]
    parts, made = tmp_path / "out.partial" / "parts", 0
    for number in range(10):
        process = subprocess.Popen([*command, f"workers={1 + number % 2}"], cwd=ROOT, stdout=subprocess.PIPE,
                                   stderr=subprocess.PIPE)
        while len(list(parts.glob("*.parquet"))) <= made and process.poll() is None:
            time.sleep(0.005)
        time.sleep(generator.uniform(0, 0.1))
        assert process.poll() is None, "finished before it was killed: the corpus is too small for this test"
        process.kill()
        process.communicate()
        made = len(list(parts.glob("*.parquet")))
    subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    assert Artifact.open(tmp_path / "out").content_hash == whole.content_hash
    assert Artifact.open(tmp_path / "out").verify() == []


def test_same_bytes_for_1_2_and_4_workers_and_1_and_37_shards(tokenizers, tmp_path):
    rows = ROWS * 4
    write_jsonl(tmp_path / "1" / "all.jsonl", rows)
    for number in range(37):
        write_jsonl(tmp_path / "37" / f"{number:02d}.jsonl",
                    rows[len(rows) * number // 37:len(rows) * (number + 1) // 37])
    made = [tokenize(tmp_path / shards, tokenizers["sentencepiece"], tmp_path / f"{shards}-{workers}", workers=workers,
                     valid_fraction=0.3)
            for shards, workers in (("1", 1), ("37", 2), ("37", 4))]
    for name in ("train.bin", "train.idx", "valid.bin", "valid.idx"):
        assert len({(artifact.path / name).read_bytes() for artifact in made}) == 1, name
    assert len({artifact.content_hash for artifact in made[1:]}) == 1


def test_every_format_gives_the_same_bytes(tokenizers, tmp_path):
    plain = write_jsonl(tmp_path / "a.jsonl", ROWS)
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    for suffix, codec in (("gz", "gzip"), ("zst", "zstd")):
        with pa.CompressedOutputStream(str(tmp_path / f"a.jsonl.{suffix}"), codec) as stream:
            stream.write(plain.read_bytes())
    hashes = {tokenize(tmp_path / name, tokenizers["sentencepiece"], tmp_path / f"{name}.out").content_hash
              for name in ("a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.parquet")}
    assert len(hashes) == 1


def test_no_document_is_on_both_sides(tokenizers, tmp_path):
    rows = [{"id": str(number), "text": f"texto {number}"} for number in range(2_000)]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    rows = pq.read_table(tokenize(path, tokenizers["tokenizers"], tmp_path / "out", valid_fraction=0.1).path
                         / "sequences.parquet").to_pylist()
    sides = {split: {row["document_id"] for row in rows if row["split"] == split} for split in ("train", "valid")}
    assert not sides["train"] & sides["valid"]
    assert len(sides["train"]) + len(sides["valid"]) == 2_000
    assert 140 <= len(sides["valid"]) <= 260
    with_more = {str(number) for number in range(2_000) if is_validation(str(number), 0, 0.2)}
    assert sides["valid"] <= with_more  # a larger share moves no document to train


def test_a_foreign_part_is_not_merged(tokenizers, tmp_path):
    corpus = write_jsonl(tmp_path / "a.jsonl", ROWS)
    settings = TokenizeSettings(documents=corpus, tokenizer=tokenizers["tokenizers"], workers=1)
    tokenize_corpus(settings, tmp_path / "out", Part(0, 2))
    tokenize_corpus(settings.model_copy(update={"split_seed": 5}), tmp_path / "out", Part(1, 2))
    with pytest.raises(UserError, match=r"1-of-2 was made from another request \(settings\.split_seed"):
        tokenize_corpus(settings, tmp_path / "out", Merge(2))
    assert not (tmp_path / "out").exists()


def test_no_documents(tokenizers, tmp_path):
    (tmp_path / "a.jsonl").touch()
    artifact = tokenize(tmp_path / "a.jsonl", tokenizers["tokenizers"], tmp_path / "out")
    for split in ("train", "valid"):
        reader = IndexedReader(artifact.path / split)
        assert (len(reader), reader.num_documents, reader.num_tokens) == (0, 0, 0)
        assert artifact.counts[split] == {"documents": 0, "empty_documents": 0, "tokens": 0, "bytes": 0}
    assert pq.read_table(artifact.path / "sequences.parquet").num_rows == 0


@pytest.mark.parametrize("workers", [1, 2])
def test_a_document_without_text_is_named(tokenizers, tmp_path, monkeypatch, workers):
    monkeypatch.setattr(tokenization, "CHUNK_BYTES", 40)
    path = write_jsonl(tmp_path / "a.jsonl", [*ROWS[:2], {"id": "nada", "text": None}])
    with pytest.raises(UserError, match="document 'nada' has no text"):
        tokenize(path, tokenizers["tokenizers"], tmp_path / "out", workers=workers)


def test_another_tokenizer_is_another_request(tokenizers, tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", ROWS)
    first = tokenize(path, tokenizers["tokenizers"], tmp_path / "out")
    assert tokenize(path, tokenizers["tokenizers"], tmp_path / "out", workers=2).manifest == first.manifest
    with pytest.raises(UserError, match="tokenizer_sha256: made with"):
        tokenize(path, tokenizers["sentencepiece"], tmp_path / "out")
    assert Artifact.open(tmp_path / "out", kind="tokenized").verify() == []
