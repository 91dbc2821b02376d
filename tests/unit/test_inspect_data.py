import json

import numpy as np
import pytest

from megatron_ext.data.indexed import bin_path
from megatron_ext.data.inspection import length_histogram
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


def test_the_histogram_holds_every_sequence():
    lengths = np.array([1, 2, 3, 4, 7, 8, 1023, 1024], dtype=np.int32)
    assert length_histogram(lengths) == [(1, 1, 1, 1), (2, 3, 2, 5), (4, 7, 2, 11), (8, 15, 1, 8),
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
        (["--sequence", 1], "needs --tokenizer"),
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
