"""Odd vocabularies, plain corpora of rewrites, begin-of-sequence ids, special tokens in texts, very long documents."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_ext.data import encoders, long_texts
from megatron_ext.data.documents import CHUNKS, rewrite_schema
from megatron_ext.data.encoders import Encoded
from megatron_ext.data.id_facts import IdFacts
from megatron_ext.data.indexed import IndexedReader
from megatron_ext.data.tokenization import TokenizeSettings, tokenize_corpus
from megatron_ext.data.tokenizers import load_tokenizer
from megatron_ext.errors import UserError
from tests.unit.selecting import select
from tests.unit.tokenizer_folders import TEXTS, byte_level_tokenizer, sentencepiece_tokenizer

CHECKOUT = Path(__file__).parents[2]


def tokenize(documents, tokenizer, output, **values):
    return tokenize_corpus(TokenizeSettings(documents=documents, tokenizer=tokenizer, workers=1, **values), output)


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory):
    return byte_level_tokenizer(tmp_path_factory.mktemp("bpe"))


@pytest.fixture(scope="module")
def sentencepiece(tmp_path_factory):
    return sentencepiece_tokenizer(tmp_path_factory.mktemp("sp"))


def with_id(folder, source, token, token_id):
    """A copy of a tokenizer in which one token of the vocabulary has another id."""
    folder.mkdir()
    content = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))
    content["model"]["vocab"][token] = token_id
    (folder / "tokenizer.json").write_text(json.dumps(content))
    (folder / "tokenizer_config.json").write_text((source / "tokenizer_config.json").read_text())
    return folder


def test_the_largest_id_decides_the_integer_type(byte_level, tmp_path):
    tokenizer = with_id(tmp_path / "holes", byte_level, "a", 70_000)
    opened = load_tokenizer(tokenizer, "tokenizers")
    assert opened.vocab_size == 70_001
    artifact = tokenize(write_jsonl(tmp_path / "a.jsonl", [{"id": "x", "text": "a"}]), tokenizer, tmp_path / "out",
                        encoder="tokenizers")
    reader = IndexedReader(artifact.path / "train")
    assert reader.dtype == np.int32
    assert 70_000 in reader.read(0)
    assert artifact.counts["largest_token_id"] == 70_000
    assert opened.encoder.decode(reader.read(0).tolist()) == "a<|endoftext|>"


def test_ids_beyond_the_vocabulary_are_refused_before_the_cast():
    facts = IdFacts({}, np.dtype(np.uint16), 400)
    facts.cast(Encoded(np.array([1, 399], np.int32), np.array([2])))
    assert facts.as_json()["largest_token_id"] == 399
    for bad in (400, 70_000, -1):
        with pytest.raises(UserError, match="its vocabulary ends at 399"):
            facts.cast(Encoded(np.array([1, bad], np.int32), np.array([2])))


def test_rewrites_in_a_folder_of_their_own_stay_with_their_original(byte_level, tmp_path):
    rows = [{"id": f"{number}/{style}", "document_id": str(number), "style": style, "text": "texto", "num_tokens": 1,
             CHUNKS: [number]} for number in range(100) for style in ("easy", "qa")]
    folder = tmp_path / "rewrites" / "documents"
    folder.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows, rewrite_schema()), folder / "part-00000.parquet")
    write_jsonl(tmp_path / "rewrites.jsonl", rows)
    tables = []
    for place in (folder.parent, folder, folder / "part-00000.parquet", tmp_path / "rewrites.jsonl"):
        artifact = tokenize(place, byte_level, tmp_path / f"out-{len(tables)}", valid_fraction=0.3, styles=["qa"])
        tables.append(pq.read_table(artifact.path / "sequences.parquet"))
        assert tables[-1] == tables[0]
    found = tables[0].to_pylist()
    assert [row["id"] for row in found] == [f"{number}/qa" for number in range(100)]
    assert [row[CHUNKS] for row in found] == [[number] for number in range(100)]
    both = tokenize(folder, byte_level, tmp_path / "both", valid_fraction=0.3)
    sides = {(row["document_id"], row["split"]) for row in pq.read_table(both.path / "sequences.parquet").to_pylist()}
    assert len(sides) == 100


@pytest.mark.parametrize("append_eod", [True, False])
def test_a_begin_of_sequence_id_before_every_document(sentencepiece, tmp_path, append_eod):
    rows = [{"id": str(number), "text": text} for number, text in enumerate(["um", "", "dois três"])]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    plain = IndexedReader(tokenize(path, sentencepiece, tmp_path / "plain", append_eod=append_eod).path / "train")
    artifact = tokenize(path, sentencepiece, tmp_path / "bos", append_eod=append_eod, prepend_bos=True)
    begun = IndexedReader(artifact.path / "train")
    assert [begun.read(i).tolist() for i in range(2)] == [[1, *plain.read(i)] for i in range(2)]
    assert begun.num_documents == 3
    assert artifact.counts["special_tokens_in_texts"] == {}
    assert pq.read_table(artifact.path / "sequences.parquet")["num_tokens"].to_pylist()[1] == 0


def test_a_tokenizer_without_a_begin_is_told(byte_level, tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"id": "a", "text": "t"}])
    with pytest.raises(UserError, match=r"names a bos_token, which has to begin documents \(prepend_bos\)"):
        tokenize(path, byte_level, tmp_path / "out", prepend_bos=True)


def test_special_tokens_in_texts_are_counted(byte_level, sentencepiece, tmp_path):
    texts = ["a<|endoftext|>b", "<|im_start|><|im_start|>", "", "c"]
    path = write_jsonl(tmp_path / "a.jsonl", [{"id": str(i), "text": text} for i, text in enumerate(texts)])
    artifact = tokenize(path, byte_level, tmp_path / "bpe", valid_fraction=0.5)
    assert artifact.counts["special_tokens_in_texts"] == {"<|endoftext|>": 1, "<|im_start|>": 2}
    path = write_jsonl(tmp_path / "b.jsonl", [{"id": "a", "text": "x</s>y<s>"}])  # which SentencePiece takes for text
    assert tokenize(path, sentencepiece, tmp_path / "sp").counts["special_tokens_in_texts"] == {}


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 60), max_size=40), st.sets(st.integers(0, 60), min_size=1), st.booleans())
def test_special_ids_are_counted_in_ranges_and_by_table(ids, special, is_framed):
    facts = IdFacts({str(token): token for token in special}, np.dtype(np.uint16), 61)
    frame = [min(special)] if is_framed else []
    given_ids = ids + frame if ids else []
    facts.cast(Encoded(np.array(given_ids, np.int32), np.array([len(given_ids)])), frame)
    expected = {str(token): ids.count(token) for token in sorted(special) if token in ids}
    assert facts.as_json()["special_tokens_in_texts"] == expected


def test_a_selection_counted_by_another_tokenizer_is_refused(byte_level, sentencepiece, tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"id": str(i), "text": TEXTS[i % 4] + str(i)} for i in range(20)])
    selection = select(path, byte_level, tmp_path / "selection", scores={}, rule=None).path
    tokenize(selection, byte_level, tmp_path / "same")
    for place in (selection, selection / "documents"):
        with pytest.raises(UserError, match=r"were counted by another tokenizer .* other_tokenizer=true"):
            tokenize(place, sentencepiece, tmp_path / "other")
    tokenize(selection, sentencepiece, tmp_path / "other", other_tokenizer=True)
    uncounted = select(path, None, tmp_path / "uncounted", scores={}, rule=None).path
    tokenize(uncounted, sentencepiece, tmp_path / "any")


# ---- long documents


@pytest.mark.parametrize("name", ["tokenizers", "sentencepiece"])
def test_pieces_of_a_long_text_have_its_ids(byte_level, sentencepiece, monkeypatch, name):
    monkeypatch.setattr(long_texts, "PIECE_CHARS", 500)
    monkeypatch.setattr(encoders, "PIECE_CHARS", 500)
    encoder = load_tokenizer({"tokenizers": byte_level, "sentencepiece": sentencepiece}[name], name).encoder
    texts = ["".join(TEXTS) * 4, "uma palavra  e outra " * 500, "sem\nespaço\n" * 800, "x" * 5_000,
             "ação<|endoftext|> e <|im_start|> coração\r\n\t  " * 200]
    for text in texts:
        whole = encoder._encode([text])[0]
        assert encoder.encode(pa.array([text])).ids.tolist() == whole
    assert len(list(long_texts.pieces_of(texts[1], lambda text: encoder._encode([text])[0]))) > 10


@pytest.mark.slow
def test_a_document_of_21_mb_takes_bounded_memory(byte_level, tmp_path):
    text = " ".join(TEXTS[i % 3] + str(i) for i in range(300_000))[:21_000_000]
    write_jsonl(tmp_path / "a.jsonl", [{"id": "long", "text": text}])
    code = ("from pathlib import Path\nfrom megatron_ext.data.tokenization import *\n"
            f"tokenize_corpus(TokenizeSettings(documents={str(tmp_path / 'a.jsonl')!r}, "
            f"tokenizer={str(byte_level)!r}, encoder='tokenizers', workers=1), Path({str(tmp_path / 'out')!r}))\n"
            "status = Path('/proc/self/status').read_text()  # ru_maxrss starts with what the parent had\n"
            "print('peak', int(status.partition('VmHWM:')[2].split()[0]) // 1024)\n")
    done = subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT, capture_output=True, text=True, check=True)
    peak_mib = int(done.stdout.split("peak")[1])
    assert peak_mib < 700
