import json
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from megatron_ext.data.documents import read_documents
from megatron_ext.data.selection import SelectSettings, counting, gathering, laying, stage
from megatron_ext.data.tokenizers import load_tokenizer
from megatron_ext.errors import UserError
from megatron_ext.settings import validate
from tests.unit.selecting import ROWS, chosen, select
from tests.unit.tokenizer_folders import byte_level_tokenizer

PASSING = {row["id"] for row in ROWS if row["stem_score"] > 2.5 or row["edu_score"] > 2.5}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return byte_level_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def corpus(tmp_path):
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "corpus.parquet")
    return tmp_path / "corpus.parquet"


def count_tokens(tokenizer, text):
    return int(load_tokenizer(tokenizer).encoder.encode(pa.array([text])).lengths[0])


def write_jsonl(path, rows):
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("budget", [1, 50, 3_000, 8_000])
def test_the_budget_is_exceeded_by_less_than_one_document(corpus, tokenizer, tmp_path, budget):
    artifact = select(corpus, tokenizer, tmp_path / "out", budget_tokens=budget)
    documents = list(read_documents(artifact.path))
    texts = {row["id"]: row for row in ROWS}
    assert all(document.num_tokens == count_tokens(tokenizer, document.text) for document in documents)
    total = sum(document.num_tokens for document in documents)
    assert total - documents[-1].num_tokens < budget <= total == artifact.counts["tokens"]
    for document in documents:
        row = texts[document.id]
        assert (document.text, document.scores) == (row["text"], {"stem": row["stem_score"], "edu": row["edu_score"]})
    counts = artifact.counts
    assert counts["documents"] == len(documents)
    assert counts["bytes"] == sum(len(document.text.encode()) for document in documents)
    assert counts["rejected"]["rule_not_met"] == len(ROWS) - len(PASSING)
    assert counts["rejected"]["over_budget"] == len(PASSING) - len(documents)
    assert counts["mean_scores"]["stem"] == pytest.approx(sum(d.scores["stem"] for d in documents) / len(documents))


def test_without_a_budget_all_that_passes_is_taken(corpus, tokenizer, tmp_path):
    ids = chosen(select(corpus, tokenizer, tmp_path / "out"))
    assert set(ids) == PASSING
    assert len(ids) == len(PASSING)
    assert ids != sorted(ids)


def test_a_smaller_budget_takes_the_beginning_of_a_larger_one(corpus, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(counting, "_MIN_ROUND_DOCUMENTS", 1)
    large = chosen(select(corpus, tokenizer, tmp_path / "large", budget_tokens=8_000))
    small = chosen(select(corpus, tokenizer, tmp_path / "small", budget_tokens=2_000))
    assert large[:len(small)] == small
    assert large == chosen(select(corpus, tokenizer, tmp_path / "all"))[:len(large)]


def test_the_seed_decides(corpus, tokenizer, tmp_path):
    first, second = (chosen(select(corpus, tokenizer, tmp_path / str(seed), budget_tokens=2_000, seed=seed))
                     for seed in (0, 1))
    assert set(first) != set(second)


def test_the_result_is_independent_of_layout_workers_and_runs(corpus, tokenizer, tmp_path, monkeypatch):
    expected = select(corpus, tokenizer, tmp_path / "parquet", budget_tokens=4_000)
    rows = random.Random(0).sample(ROWS, len(ROWS))
    for number in range(7):
        write_jsonl(tmp_path / "shards" / f"{number}.jsonl", rows[number::7])
    monkeypatch.setattr(laying, "RUN_BYTES", 2_000)
    monkeypatch.setattr(counting, "_MIN_ROUND_DOCUMENTS", 1)
    for workers in (1, 2):
        artifact = select(tmp_path / "shards", tokenizer, tmp_path / f"jsonl{workers}", budget_tokens=4_000,
                          workers=workers)
        assert artifact.content_hash == expected.content_hash


def test_every_reject_has_its_reason(tokenizer, tmp_path):
    rows = [
        {"id": "good", "text": "bom texto", "stem_score": 3, "edu_score": 1},
        {"id": "copy", "text": "bom texto", "stem_score": 4, "edu_score": 1},
        {"id": "low", "text": "bom texto", "stem_score": 1, "edu_score": 1},
        {"id": "unscored", "text": "bom texto", "stem_score": 3, "edu_score": None},
        {"id": "nan", "text": "bom texto", "stem_score": float("nan"), "edu_score": 3},
        {"id": "short", "text": "ção", "stem_score": 3, "edu_score": 3},
        {"id": "long", "text": "x" * 21, "stem_score": 3, "edu_score": 3},
        {"id": "empty", "text": None, "stem_score": 3, "edu_score": 3},
    ]
    artifact = select(write_jsonl(tmp_path / "a.jsonl", rows), tokenizer, tmp_path / "out", min_chars=4, max_chars=20,
                      keep_rejected=True)
    assert artifact.counts["rejected"] == {
        "missing_text": 1, "score_missing": 1, "score_nan": 1, "rule_not_met": 1, "too_short": 1, "too_long": 1,
        "duplicate_text": 1, "near_duplicate": 0, "contaminated": 0, "over_budget": 0}
    assert artifact.counts["input_documents"] == len(rows)
    assert len(chosen(artifact)) == 1
    assert chosen(artifact)[0] in ("good", "copy")
    kept = pq.read_table(artifact.path / "rejected").to_pylist()
    reasons = {row["id"]: row["reason"] for row in kept}
    assert {"low": "rule_not_met", "unscored": "score_missing", "nan": "score_nan", "short": "too_short",
            "long": "too_long", "empty": "missing_text"}.items() < reasons.items()
    assert "duplicate_text" in (reasons.get("good"), reasons.get("copy"))
    assert len(kept) == len(rows) - 1
    assert next(row["text"] for row in kept if row["id"] == "long") == "x" * 21


def test_too_small_a_corpus(corpus, tokenizer, tmp_path):
    tokens = sum(count_tokens(tokenizer, row["text"]) for row in ROWS if row["id"] in PASSING)
    with pytest.raises(UserError, match=f"{len(PASSING)} documents that pass have {tokens:,} tokens, fewer"):
        select(corpus, tokenizer, tmp_path / "out", budget_tokens=tokens + 10)
    artifact = select(corpus, tokenizer, tmp_path / "all", budget_tokens=2 * tokens, on_shortage="allow")
    assert artifact.counts["missing_tokens"] == tokens
    assert artifact.counts["epochs_for_budget"] == 2.0
    assert set(chosen(artifact)) == PASSING
    exact = select(corpus, tokenizer, tmp_path / "exact", budget_tokens=tokens)
    assert exact.counts["tokens"] == tokens


def test_nothing_passes(corpus, tokenizer, tmp_path):
    with pytest.raises(UserError, match="0 documents that pass have 0 tokens"):
        select(corpus, tokenizer, tmp_path / "out", rule="stem > 100", budget_tokens=5)
    artifact = select(corpus, tokenizer, tmp_path / "none", rule="stem > 100")
    assert chosen(artifact) == []
    assert artifact.counts["mean_scores"] == {"stem": None, "edu": None}


def test_duplicate_ids_are_named(tokenizer, tmp_path):
    write_jsonl(tmp_path / "c" / "a.jsonl", ROWS[:250])
    write_jsonl(tmp_path / "c" / "b.jsonl", [row | {"text": row["text"] + "!"} for row in ROWS[8:10]] + ROWS[:1])
    with pytest.raises(UserError, match=r"the same id: 'd00[89]' \([ab].jsonl\), 'd00[89]' .*id_column=null"):
        select(tmp_path / "c", tokenizer, tmp_path / "out", rule=None)
    artifact = select(tmp_path / "c", tokenizer, tmp_path / "made", rule=None, id_column=None)
    assert artifact.counts["rejected"]["duplicate_text"] == 1
    assert len(chosen(artifact)) == len(set(chosen(artifact))) == 252


def test_wrong_names_are_answered_with_the_right_ones(corpus, tokenizer, tmp_path):
    with pytest.raises(UserError, match="names stemm; the scores are: stem"):
        validate(SelectSettings, {"corpus": "c", "tokenizer": "t", "scores": {"stem": "s"}, "rule": "stemm > 2"}, "")
    with pytest.raises(UserError, match="no column 'stem'; its columns are: id, text, stem_score, edu_score"):
        select(corpus, tokenizer, tmp_path / "out", scores={"stem": "stem", "edu": "edu_score"})
    with pytest.raises(UserError, match="'text' cannot be the name of a score"):
        validate(SelectSettings, {"corpus": "c", "tokenizer": "t", "scores": {"text": "a"}}, "settings")


@pytest.mark.parametrize(("module", "function"), [(stage, "make_runs"), (counting, "measure_pieces"),
                                                  (gathering, "write_part")])
def test_an_interrupted_selection_goes_on(tokenizer, tmp_path, monkeypatch, module, function):
    for number in range(5):
        write_jsonl(tmp_path / "c" / f"{number}.jsonl", ROWS[number::5])
    monkeypatch.setattr(laying, "RUN_BYTES", 2_000)
    monkeypatch.setattr(counting, "_TASK_BYTES", 3_000)
    monkeypatch.setattr(gathering, "MAX_PART_ROWS", 30)
    whole = select(tmp_path / "c", tokenizer, tmp_path / "whole", budget_tokens=8_000)
    real, done = getattr(module, function), []

    def interrupted(task):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(task.path)
        return real(task)

    monkeypatch.setattr(module, function, interrupted)
    with pytest.raises(KeyboardInterrupt):
        select(tmp_path / "c", tokenizer, tmp_path / "out", budget_tokens=8_000)
    again = []
    monkeypatch.setattr(module, function, lambda task: again.append(task.path) or real(task))
    resumed = select(tmp_path / "c", tokenizer, tmp_path / "out", budget_tokens=8_000)
    assert resumed.content_hash == whole.content_hash
    assert again
    assert not set(done) & set(again)
    assert not (resumed.path / "work").exists()


def test_exact_duplicates_can_be_kept_and_are_counted(corpus, tokenizer, tmp_path):
    write_jsonl(tmp_path / "c" / "a.jsonl", ROWS[:20] + [row | {"id": f"copy {row['id']}"} for row in ROWS[:5]])
    kept = select(tmp_path / "c", tokenizer, tmp_path / "kept", rule=None, exact_duplicates="report")
    assert kept.counts["duplicates"] == {"exact": {"documents": 5, "action": "report"}}
    assert kept.counts["documents"] == 25
    assert kept.counts["rejected"]["duplicate_text"] == 0


def test_without_a_tokenizer_no_tokens_are_counted(corpus, tmp_path):
    artifact = select(corpus, None, tmp_path / "out")
    assert set(chosen(artifact)) == PASSING
    assert artifact.counts["tokens"] is None
    assert {document.num_tokens for document in read_documents(artifact.path)} == {None}
    with pytest.raises(UserError, match="budget_tokens needs a tokenizer"):
        validate(SelectSettings, {"corpus": "c", "tokenizer": None, "budget_tokens": 5}, "settings")
