"""The same documents whatever the layout of the corpus, the workers, the machines and the interruptions."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from megatron_ext.data.corpus import Corpus
from megatron_ext.data.documents import read_documents
from megatron_ext.data.selection import counting, laying, stage
from megatron_ext.errors import UserError
from megatron_ext.parts import Merge, Part
from tests.unit.selecting import ROWS, chosen, select, write_jsonl_zst, write_parquet_shards
from tests.unit.tokenizer_folders import byte_level_tokenizer

CHECKOUT = Path(__file__).parents[2]
SHARED = Path(os.environ.get("MEGATRON_EXT_SHARED", CHECKOUT.parent / "shared")) / "corpus"
COPIES = [row | {"id": f"copy of {row['id']}"} for row in ROWS[::7]]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return byte_level_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def in_small_pieces(monkeypatch):
    monkeypatch.setattr(stage, "_MIN_CHUNK_BYTES", 1_000)
    monkeypatch.setattr(stage, "_CHUNKS", 100)
    monkeypatch.setattr(laying, "RUN_BYTES", 2_000)
    monkeypatch.setattr(counting, "_TASK_BYTES", 3_000)
    monkeypatch.setattr(counting, "_MIN_ROUND_DOCUMENTS", 1)


def test_37_files_in_another_order_and_jsonl_zst_give_the_same_bytes(tokenizer, tmp_path, in_small_pieces):
    settings = {"budget_tokens": 3_000, "near_duplicates": "remove", "keep_rejected": True}
    expected = select(write_parquet_shards(tmp_path / "2", ROWS + COPIES, 2), tokenizer, tmp_path / "a", **settings)
    assert expected.counts["rejected"]["duplicate_text"] > 10
    layouts = {"37": write_parquet_shards(tmp_path / "37", ROWS + COPIES, 37, seed=1),
               "zst": write_jsonl_zst(tmp_path / "zst", ROWS + COPIES, 5, seed=2)}
    for name, corpus in layouts.items():
        artifact = select(corpus, tokenizer, tmp_path / f"out-{name}", **settings)
        assert chosen(artifact) == chosen(expected)
        assert artifact.counts == expected.counts
        assert artifact.content_hash == expected.content_hash


def test_ids_made_from_content_do_not_depend_on_the_layout_either(tokenizer, tmp_path, in_small_pieces):
    bare = [{key: value for key, value in row.items() if key != "id"} for row in ROWS]
    layouts = write_parquet_shards(tmp_path / "3", bare, 3), write_jsonl_zst(tmp_path / "4", bare, 4, seed=1)
    hashes = {select(corpus, tokenizer, tmp_path / f"out-{corpus.name}", id_column=None,
                     budget_tokens=1_500).content_hash for corpus in layouts}
    assert len(hashes) == 1


def test_the_number_of_workers_does_not_matter(tokenizer, tmp_path, monkeypatch):
    corpus = write_parquet_shards(tmp_path / "corpus", ROWS, 9)
    hashes = {select(corpus, tokenizer, tmp_path / f"out-{workers}", budget_tokens=1_500, workers=workers).content_hash
              for workers in (1, 2, 4)}
    assert len(hashes) == 1


@pytest.mark.parametrize("count", [1, 3, 12])
def test_parts_and_a_merge_equal_one_machine(tokenizer, tmp_path, in_small_pieces, count):
    settings = {"budget_tokens": 1_500, "near_duplicates": "remove", "keep_rejected": True}
    corpus = write_parquet_shards(tmp_path / "corpus", ROWS + COPIES, 9)
    expected = select(corpus, tokenizer, tmp_path / "one", **settings)
    for index in reversed(range(count)):
        part = select(corpus, tokenizer, tmp_path / "out", Part(index, count), **settings)
        assert part.path == tmp_path / "out.parts" / f"{index}-of-{count}"
    merged = select(corpus, tokenizer, tmp_path / "out", Merge(count), **settings)
    assert merged.content_hash == expected.content_hash
    assert merged.counts == expected.counts


def test_a_merge_names_the_missing_part_and_refuses_other_settings(tokenizer, tmp_path):
    corpus = write_parquet_shards(tmp_path / "corpus", ROWS, 4)
    select(corpus, tokenizer, tmp_path / "out", Part(0, 2))
    with pytest.raises(UserError, match=r"1 of 2 parts are missing: .*1-of-2"):
        select(corpus, tokenizer, tmp_path / "out", Merge(2))
    select(corpus, tokenizer, tmp_path / "out", Part(1, 2), min_chars=50)
    with pytest.raises(UserError, match=r"1-of-2 was made from another .*min_chars: made with 50, asked for 1"):
        select(corpus, tokenizer, tmp_path / "out", Merge(2))


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_with_the_same_bytes(tokenizer, tmp_path):
    rows = [row | {"id": f"{row['id']}/{i}", "text": f"{row['text']} {i}"} for i in range(30) for row in ROWS]
    corpus = write_parquet_shards(tmp_path / "corpus", rows, 24)
    expected = select(corpus, tokenizer, tmp_path / "whole", budget_tokens=80_000)
    command = [sys.executable, "-m", "tools.select_corpus", "--output", str(tmp_path / "out"), f"corpus={corpus}",
               f"tokenizer={tokenizer}", "scores={stem: stem_score, edu: edu_score}",
               "rule=stem > 2.5 or edu > 2.5", "budget_tokens=80000", "workers=2"]
    killed = 0
    for num_files in sorted(random.Random(0).sample(range(1, 40), 4)):  # two for each of the 24 chunks
        process = subprocess.Popen(command, cwd=CHECKOUT, stdout=subprocess.DEVNULL, start_new_session=True)
        while process.poll() is None and len(list((tmp_path / "out.partial" / "work").glob("*/*"))) < num_files:
            time.sleep(0.001)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            killed += 1
        process.wait()
    assert killed
    subprocess.run(command, cwd=CHECKOUT, check=True, stdout=subprocess.DEVNULL)
    assert select(corpus, tokenizer, tmp_path / "out", budget_tokens=80_000).content_hash == expected.content_hash
    assert not (tmp_path / "out.partial").exists()


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason="the development corpus is not here")
def test_the_development_corpus_in_three_layouts(tokenizer, tmp_path):
    table = pa.concat_tables([pq.read_table(shard) for shard in Corpus(SHARED).shards()])
    decimal_notation = {name: table[name].cast(pa.string()).cast(pa.float64()) for name in ("stem_score", "edu_score")}
    rows = table.drop_columns(list(decimal_notation)).to_pylist()
    for name, scores in decimal_notation.items():  # the corpus holds float32; 2.7 is 2.7 in JSON too
        for row, score in zip(rows, scores.to_pylist(), strict=True):
            row[name] = score
    layouts = [SHARED, write_parquet_shards(tmp_path / "37", rows, 37, seed=3),
               write_jsonl_zst(tmp_path / "zst", rows, 3, seed=4)]
    found = set()
    for number, corpus in enumerate(layouts):
        artifact = select(corpus, tokenizer, tmp_path / f"out-{number}", budget_tokens=1_000_000, workers=2)
        ids = frozenset(document.id for document in read_documents(artifact.path))
        found.add((ids, artifact.counts["tokens"], artifact.content_hash))
    assert len(found) == 1
