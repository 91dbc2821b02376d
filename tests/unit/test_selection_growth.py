"""What is measured of a shard is kept: a corpus that grows, another rule, another budget cost what is new alone."""

import shutil

import numpy as np
import pytest

from megatron_ext.data.documents import read_documents
from megatron_ext.data.selection import counting, laying, stage
from megatron_ext.data.selection.contamination import Hits
from megatron_ext.errors import UserError
from tests.unit import selecting
from tests.unit.selecting import ROWS, chosen, write_jsonl_zst, write_parquet_shards
from tests.unit.tokenizer_folders import byte_level_tokenizer

LOOSE = "stem > 1 or edu > 1"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return byte_level_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def work(monkeypatch):
    """What is read and how many documents are counted, as lists that grow."""
    monkeypatch.setattr(counting, "_MIN_ROUND_DOCUMENTS", 1)
    done = {"read": [], "looked up": [], "counted": []}

    def watched(module, function, key, of):
        real = getattr(module, function)

        def call(task):
            done[key].append(of(task))
            return real(task)

        monkeypatch.setattr(module, function, call)

    watched(stage, "make_runs", "read", lambda task: task.chunk.name)
    watched(laying, "lay_down", "looked up", lambda task: len(task.rows))
    watched(counting, "measure_pieces", "counted", lambda task: sum(len(piece.rows) for piece in task.pieces))
    return done


def cleared(work):
    found = {key: list(values) for key, values in work.items()}
    for values in work.values():
        values.clear()
    return found


def select(corpus, tokenizer, output, **values):
    return selecting.select(corpus, tokenizer, output, keep_measures=True, **values)


def untouched(corpus, tokenizer, output, **values):
    """The same selection with nothing known before."""
    return selecting.select(corpus, tokenizer, output, **values)


@pytest.mark.parametrize("budget", [None, 2_500])
def test_two_shards_more_one_less_and_another_rule(tokenizer, tmp_path, work, budget):
    corpus = write_parquet_shards(tmp_path / "corpus", ROWS[:200], 4)
    counted = set(chosen(select(corpus, tokenizer, tmp_path / "first", budget_tokens=budget)))
    first = cleared(work)
    assert sorted(first["read"]) == ["00.parquet", "01.parquet", "02.parquet", "03.parquet"]
    assert first["looked up"] == []
    for number, shard in enumerate(sorted(write_parquet_shards(tmp_path / "more", ROWS[200:], 2).iterdir())):
        shutil.move(shard, corpus / f"new-{number}.parquet")
    (corpus / "02.parquet").unlink()
    (corpus / "00.parquet").rename(corpus / "renamed.parquet")
    second = select(corpus, tokenizer, tmp_path / "second", rule=LOOSE, budget_tokens=budget)
    again = cleared(work)
    assert sorted(again["read"]) == ["new-0.parquet", "new-1.parquet"]
    if budget is None:  # all that the first rule let pass was counted
        assert sum(again["counted"]) == len(set(chosen(second)) - counted)
    expected = untouched(corpus, tokenizer, tmp_path / "expected", rule=LOOSE, budget_tokens=budget)
    assert second.content_hash == expected.content_hash
    assert second.counts == expected.counts
    cleared(work)
    third = select(corpus, tokenizer, tmp_path / "third", rule="stem + edu > 4", budget_tokens=budget)
    nothing_new = cleared(work)
    assert nothing_new["read"] == []
    if budget is None:
        assert nothing_new["counted"] == []
        assert sum(nothing_new["looked up"]) == len(chosen(third))
    assert third.content_hash == untouched(corpus, tokenizer, tmp_path / "expected-3", rule="stem + edu > 4",
                                           budget_tokens=budget).content_hash


def test_another_budget_counts_the_rest_alone(tokenizer, tmp_path, work):
    corpus = write_jsonl_zst(tmp_path / "corpus", ROWS, 3)
    small = select(corpus, tokenizer, tmp_path / "small", budget_tokens=1_000)
    counted = sum(cleared(work)["counted"])
    large = select(corpus, tokenizer, tmp_path / "large", budget_tokens=3_000)
    again = cleared(work)
    assert again["read"] == []
    expected = untouched(corpus, tokenizer, tmp_path / "expected", budget_tokens=3_000)
    assert sum(again["counted"]) <= sum(cleared(work)["counted"]) - counted + 20  # rounds end elsewhere
    assert large.content_hash == expected.content_hash
    assert chosen(large)[:len(chosen(small))] == chosen(small)


def test_a_changed_shard_is_read_again_and_rejected_documents_are_kept(tokenizer, tmp_path, work):
    corpus = write_parquet_shards(tmp_path / "corpus", ROWS, 3)
    settings = {"keep_rejected": True, "budget_tokens": 2_000}
    select(corpus, tokenizer, tmp_path / "first", **settings)
    cleared(work)
    shutil.rmtree(corpus)
    changed = [row | {"text": "outro " + row["text"]} if row["id"] == "d007" else row for row in ROWS]
    write_parquet_shards(corpus, changed, 3)
    second = select(corpus, tokenizer, tmp_path / "second", **settings)
    assert len(cleared(work)["read"]) == 1
    expected = untouched(corpus, tokenizer, tmp_path / "expected", **settings)
    assert second.content_hash == expected.content_hash


def test_test_items_found_before_are_found_again(tokenizer, tmp_path, work):
    corpus = write_parquet_shards(tmp_path / "corpus", ROWS, 3)
    (tmp_path / "items.jsonl").write_text('{"task": "t", "id": "1", "text": "às margens do Ipiranga, D. Pedro '
                                          'proclamou a independência"}\n')
    settings = {"test_items": tmp_path / "items.jsonl", "contaminated": "remove", "ngram": 8, "short_ngram": 5}
    select(corpus, tokenizer, tmp_path / "first", rule="stem > 2.5", **settings)
    cleared(work)
    second = select(corpus, tokenizer, tmp_path / "second", budget_tokens=2_000, **settings)
    assert cleared(work)["read"] == []
    expected = untouched(corpus, tokenizer, tmp_path / "expected", budget_tokens=2_000, **settings)
    assert second.counts == expected.counts
    assert second.counts["rejected"]["contaminated"] > 0
    assert second.content_hash == expected.content_hash


def test_an_interrupted_second_selection_goes_on(tokenizer, tmp_path, work, monkeypatch):
    corpus = write_parquet_shards(tmp_path / "corpus", ROWS, 4)
    monkeypatch.setattr(counting, "_TASK_BYTES", 1_000)
    select(corpus, tokenizer, tmp_path / "first", budget_tokens=500)
    cleared(work)
    counted = counting.measure_pieces

    def interrupted(task):
        if len(work["counted"]) == 4:
            raise KeyboardInterrupt
        return counted(task)

    monkeypatch.setattr(counting, "measure_pieces", interrupted)
    with pytest.raises(KeyboardInterrupt):
        select(corpus, tokenizer, tmp_path / "second", rule=LOOSE, budget_tokens=6_000)
    monkeypatch.setattr(counting, "measure_pieces", counted)
    resumed = select(corpus, tokenizer, tmp_path / "second", rule=LOOSE, budget_tokens=6_000)
    assert resumed.content_hash == untouched(corpus, tokenizer, tmp_path / "expected", rule=LOOSE,
                                             budget_tokens=6_000).content_hash
    assert all(document.num_tokens > 0 for document in read_documents(resumed.path))


def test_repeated_ids_of_known_shards_are_named(tokenizer, tmp_path):
    corpus = write_parquet_shards(tmp_path / "corpus", ROWS[:50], 2)
    select(corpus, tokenizer, tmp_path / "first", rule=None)
    twice = [row | {"text": "outro"} for row in ROWS[:1]]
    shutil.move(write_parquet_shards(tmp_path / "more", twice, 1) / "00.parquet", corpus / "more.parquet")
    with pytest.raises(UserError, match=r"the same id: 'd000' \((more|0[01]).parquet\)"):
        select(corpus, tokenizer, tmp_path / "second", rule=None)


def test_hits_move_with_their_documents():
    hits = Hits(np.array([3, 5, 3, 9]), np.array([0, 1, 2, 3], np.int32))
    moved = hits.moved(np.array([9, 3, 4]), np.array([90, 30, 40]))
    assert sorted(zip(moved.documents.tolist(), moved.items.tolist(), strict=True)) == [(30, 0), (30, 2), (90, 3)]
    assert len(hits.moved(np.array([], np.int64), np.array([], np.int64)).documents) == 0
