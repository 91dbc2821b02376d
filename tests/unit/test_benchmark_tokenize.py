import json
import sys

import pytest

from benchmarks import measuring, tokenize
from megatron_ext.data.corpus import Corpus
from tests.unit.tokenizer_folders import TEXTS, byte_level_tokenizer


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in [*TEXTS[:3], "um\ndois\ntrês\nquatro"]))
    return path


def test_contestants_write_the_same_bytes(corpus, tmp_path, monkeypatch):
    byte_level_tokenizer(tmp_path / "bpe")
    names = ["ours (auto), JSONL", "Megatron-LM's algorithm, JSONL"]
    monkeypatch.setattr("sys.argv", [
        "tokenize", "--corpus", str(corpus), "--tokenizer", str(tmp_path / "bpe"), "--megabytes", "0.01",
        "--repetitions", "1", "--work", str(tmp_path), "--output", str(tmp_path / "t.md"), "--only", *names])
    tokenize.main()
    rows = {line.split("|")[1].strip(): line for line in (tmp_path / "t.md").read_text().splitlines() if "|" in line}
    assert all(rows[name].endswith("| yes |") for name in names)


def test_a_small_corpus_is_repeated_with_other_orders_of_lines(corpus, tmp_path):
    size = tokenize._write_documents(Corpus(corpus, id_column=None), 5_000, tmp_path)
    texts = [json.loads(line)["text"] for line in (tmp_path / "documents.jsonl").read_text().splitlines()]
    assert sum(len(text.encode()) for text in texts) == size
    assert 5_000 <= size < 5_000 + max(len(text.encode()) for text in texts)
    assert texts[3] == "um\ndois\ntrês\nquatro"
    assert sorted(texts[7].split("\n")) == sorted(texts[3].split("\n"))
    assert len(set(texts[3::4])) > 1


def test_memory_and_time_are_measured():
    large = []
    measured = measuring.measure(lambda: large.append(bytes(200 * 2**20).replace(b"\0", b"x")) and None)
    assert measured["peak_mib"] > 200
    assert 0 < measured["cpu_seconds"] < 60 and sys.getsizeof(large[0]) > 200 * 2**20
