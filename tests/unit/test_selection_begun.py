"""Files that are read from their beginning alone: an interrupted selection goes on within them."""

import base64
import bz2
import gzip
import json
import lzma
import random

import pyarrow as pa
import pytest

from megatron_ext.data import batches
from megatron_ext.data.selection import laying
from megatron_ext.parts import Part
from tests.unit.selecting import ROWS, chosen, select
from tests.unit.tokenizer_folders import byte_level_tokenizer

LINES = "\n\n".join(json.dumps(row) for row in ROWS).encode()  # with blank lines
FILES = {
    "c.jsonl.gz": gzip.compress(LINES), "c.jsonl.bz2": bz2.compress(LINES), "c.jsonl.xz": lzma.compress(LINES),
    "c.jsonl.zst": pa.compress(LINES, codec="zstd", asbytes=True), "c.json": json.dumps(ROWS).encode(),
}
KINDS = {"counted": {}, "kept": {"keep_measures": True}, "rejected, too": {"keep_rejected": True},
         "near duplicates": {"near_duplicates": "report"}}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return byte_level_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def parsed(monkeypatch):
    """Of each batch of rows that is made, how many there are."""
    monkeypatch.setattr(batches, "BATCH_ROWS", 16)
    monkeypatch.setattr(laying, "RUN_BYTES", 4_000)
    real, sizes = batches._json_batch, []

    def watched(rows, *others):
        sizes.append(len(rows))
        return real(rows, *others)

    monkeypatch.setattr(batches, "_json_batch", watched)
    return sizes


def stop_at_run(monkeypatch, number):
    real = laying._write_sorted

    def write(task, run, *others):
        if run == number:
            raise KeyboardInterrupt
        return real(task, run, *others)

    monkeypatch.setattr(laying, "_write_sorted", write)


@pytest.mark.parametrize(("file", "kind"), [(file, "counted") for file in FILES] + [
    ("c.jsonl.zst", kind) for kind in KINDS if kind != "counted"])
def test_what_was_read_before_an_interruption_is_not_parsed_again(tokenizer, tmp_path, parsed, capsys, file, kind):
    (tmp_path / file).write_bytes(FILES[file])
    values = KINDS[kind] | {"budget_tokens": 8_000}
    whole = select(tmp_path / file, tokenizer, tmp_path / "whole", **(values | {"keep_measures": False}))
    assert sum(parsed) == len(ROWS)
    for stop in (3, 5):
        with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
            stop_at_run(patch, stop)
            select(tmp_path / file, tokenizer, tmp_path / "out", **values)
    parsed.clear()
    capsys.readouterr()
    resumed = select(tmp_path / file, tokenizer, tmp_path / "out", **values)
    [told] = [line for line in capsys.readouterr().out.splitlines() if "documents were read before, going on" in line]
    num_before = int(told.split()[2])
    assert sum(parsed[:-(-(len(ROWS) - num_before) // 16)]) == len(ROWS) - num_before
    assert num_before > 5 * 16
    assert (chosen(resumed), resumed.counts) == (chosen(whole), whole.counts)
    assert resumed.content_hash == whole.content_hash
    if kind == "kept":  # the index that was made on the way is whole, too
        parsed.clear()
        again = select(tmp_path / file, tokenizer, tmp_path / "again", **values)
        assert again.content_hash == whole.content_hash
        assert "1 of 1 chunks are known" in capsys.readouterr().out


def test_a_part_holds_nothing_of_it(tokenizer, tmp_path, parsed):
    (tmp_path / "c.jsonl.gz").write_bytes(FILES["c.jsonl.gz"])
    part = select(tmp_path / "c.jsonl.gz", tokenizer, tmp_path / "out", share=Part(0, 1))
    assert not [name for name in part.manifest["files"] if "begun" in name]


def test_progress_is_told_within_a_file(tokenizer, tmp_path, monkeypatch, capsys):
    noise = base64.b64encode(random.Random(0).randbytes(3 * 2**20)).decode()
    rows = [ROWS[0] | {"text": noise[start:start + 2**16]} for start in range(0, len(noise), 2**16)]
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode(), 1))
    size = (tmp_path / "c.jsonl.gz").stat().st_size >> 20
    monkeypatch.setattr(laying, "_TOLD_BYTES", 2**20)
    select(tmp_path / "c.jsonl.gz", tokenizer, tmp_path / "out", rule=None, id_column=None)
    assert f"read c.jsonl.gz: {size}/{size} MiB  100 %" in capsys.readouterr().out
