import json
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_ext.data import dataset_comparison, inspection
from megatron_ext.data.indexed import bin_path, idx_path, write_index
from megatron_ext.data.inspection import count_lengths, length_histogram, length_quantile, open_dataset
from megatron_ext.data.tokenization import TokenizeSettings, tokenize_corpus
from tests.unit.tokenizer_folders import TEXTS, byte_level_tokenizer
from tools import inspect_data


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    byte_level_tokenizer(folder / "tokenizer")
    rows = [{"id": f"d{number}", "text": text} for number, text in enumerate(TEXTS)]
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenize_corpus(TokenizeSettings(documents=folder / "a.jsonl", tokenizer=folder / "tokenizer"), folder / "tokens")
    return folder


def run(monkeypatch, capsys, *arguments):
    monkeypatch.setattr("sys.argv", ["inspect_data", *map(str, arguments)])
    code = inspect_data.main()
    output = capsys.readouterr()
    return code, output.out, output.err


def test_counts_and_lengths(folders, monkeypatch, capsys):
    code, out, _ = run(monkeypatch, capsys, folders / "tokens", "--verify")
    assert code == 0
    assert f"{len(TEXTS)} documents, {len(TEXTS)} sequences" in out
    assert "verified: no damage" in out
    assert run(monkeypatch, capsys, folders / "tokens" / "train.idx")[0] == 0
    assert run(monkeypatch, capsys, folders / "tokens", "--split", "valid")[0] == 0


@pytest.mark.parametrize("together", [3, 100])
def test_the_histogram_holds_every_sequence(monkeypatch, together):
    monkeypatch.setattr(inspection, "_COUNTED_TOGETHER", together)
    counts = count_lengths(np.array([1023, 2, 3, 4, 1, 7, 8, 1024], dtype=np.int32))
    assert [length_quantile(counts, share) for share in (0, 0.25, 0.5, 0.6, 1)] == [1, 2, 4, 7, 1024]
    assert length_histogram(counts) == [(1, 1, 1, 1), (2, 3, 2, 5), (4, 7, 2, 11), (8, 15, 1, 8),
                                         (512, 1023, 1, 1023), (1024, 2047, 1, 1024)]


def test_a_sequence_with_its_origin(folders, monkeypatch, capsys):
    code, out, _ = run(monkeypatch, capsys, folders / "tokens", "--sequence", 2, "--tokenizer", folders / "tokenizer")
    assert code == 0
    assert "id: d2" in out
    assert "style: original" in out
    assert TEXTS[2] + "<|endoftext|>" in out


def test_mistakes(folders, monkeypatch, capsys, tmp_path):
    other = byte_level_tokenizer(tmp_path / "other", vocab_size=300)
    for arguments, message in [
        (["--sequence", 999, "--tokenizer", folders / "tokenizer"], "no sequence 999; "),
        (["--sequence", 1], "need --tokenizer"),
        (["--document", 999, "--tokenizer", folders / "tokenizer"], "no document 999; "),
        (["--sequence", 1, "--tokenizer", other], "has another sha256"),
        (["--split", "test"], "there is no split 'test'"),
    ]:
        code, _, err = run(monkeypatch, capsys, folders / "tokens", *arguments)
        assert code == 2
        assert message in err


def test_damage_is_named(folders, monkeypatch, capsys, tmp_path):
    tokens = tmp_path / "tokens"
    tokens.mkdir()
    for file in (folders / "tokens").iterdir():
        (tokens / file.name).write_bytes(file.read_bytes())
    data = bytearray(bin_path(tokens / "train").read_bytes())
    data[4:6] = b"\xff\xff"
    bin_path(tokens / "train").write_bytes(data)
    code, out, _ = run(monkeypatch, capsys, tokens, "--verify")
    assert code == 1
    assert "train.bin: bytes differ from the manifest's sha256" in out
    assert "token id 65535, but the vocabulary has" in out
    bin_path(tokens / "train").write_bytes(data[:-6])
    code, _, err = run(monkeypatch, capsys, tokens)
    assert code == 2
    assert "train.bin has" in err
    code, _, err = run(monkeypatch, capsys, tokens / "train")
    assert code == 2
    assert "train.bin is truncated" in err


def write(prefix, documents, dtype=np.uint16):
    bin_path(prefix).write_bytes(np.array([i for d in documents for i in d], dtype=dtype).tobytes())
    write_index(idx_path(prefix), np.array([len(document) for document in documents], dtype=np.int64), np.dtype(dtype))
    return prefix


def test_a_document_is_counted_with_the_empty_ones(folders, monkeypatch, capsys, tmp_path):
    rows = [{"id": "a", "text": "um"}, {"id": "b", "text": ""}, {"id": "c", "text": "três"}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenize_corpus(TokenizeSettings(documents=tmp_path / "a.jsonl", tokenizer=folders / "tokenizer"), tmp_path / "out")
    for number, expected in enumerate(["id: a", "id: b", "id: c"]):
        _, out, _ = run(monkeypatch, capsys, tmp_path / "out", "--document", number, "--tokenizer",
                        folders / "tokenizer")
        assert expected in out
        assert ("an empty document" in out) == (number == 1)


@pytest.mark.parametrize(("other", "difference"), [
    ([[1, 2, 3], [], [4, 5], [6]], None),
    ([[1, 2, 3], [], [4, 9], [6]], "document 2 differs first at its token 1: 5 and 9"),
    ([[1, 2, 3], [], [4, 5, 7], [6]], "document 2 has 2 and 3 tokens; all before it are equal"),
    ([[1, 8, 3], [], [4, 5, 7], [6]], "document 0 differs first at its token 1: 2 and 8"),
    ([[], [1, 2, 3], [4, 5], [6]], "document 0 has 3 and 0 tokens"),
    ([[1, 2, 3], [], [4, 5]], "the first 3 documents are equal; there are 4 and 3"),
    ([], "the first 0 documents are equal; there are 4 and 0"),
])
@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_the_first_difference(monkeypatch, capsys, tmp_path, other, difference, dtype):
    monkeypatch.setattr(dataset_comparison, "_TOKENS_TOGETHER", 2)
    monkeypatch.setattr(dataset_comparison, "_DOCUMENTS_TOGETHER", 2)
    left = write(tmp_path / "left", [[1, 2, 3], [], [4, 5], [6]])
    code, out, _ = run(monkeypatch, capsys, left, "--compare", write(tmp_path / "right", other, dtype))
    assert code == (1 if difference else 0)
    assert (difference or "hold the same documents") in out


@given(*[st.lists(st.lists(st.integers(0, 2), max_size=3), max_size=5)] * 2)
def test_a_difference_is_found_where_there_is_one(tmp_path_factory, left, right):
    folder = tmp_path_factory.mktemp("data")
    found = dataset_comparison.first_difference(*(open_dataset(write(folder / name, documents))
                                                  for name, documents in (("a", left), ("b", right))))
    assert (found is None) == (left == right)


def test_artifacts_are_compared_with_their_sources(folders, monkeypatch, capsys, tmp_path):
    assert run(monkeypatch, capsys, folders / "tokens", "--compare", folders / "tokens")[0] == 0
    rows = [{"id": f"d{number}", "text": text} for number, text in enumerate([*TEXTS[:4], "outra", *TEXTS[5:]])]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenize_corpus(TokenizeSettings(documents=tmp_path / "a.jsonl", tokenizer=folders / "tokenizer"), tmp_path / "out")
    code, out, _ = run(monkeypatch, capsys, folders / "tokens", "--compare", tmp_path / "out")
    assert code == 1
    assert re.search(r"^document 4 has \d+ and 5 tokens; all before it are equal \(d4 and d4\)$", out, re.MULTILINE)
