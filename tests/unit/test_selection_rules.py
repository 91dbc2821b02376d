"""What rules, missing values and odd budgets do to a selection."""

import json

import pytest

from megatron_ext.data.documents import read_documents
from megatron_ext.data.selection import SelectSettings
from megatron_ext.errors import UserError
from megatron_ext.settings import validate
from tests.unit.selecting import chosen, select
from tests.unit.tokenizer_folders import byte_level_tokenizer

ROWS = [
    {"id": "pt", "text": "um", "lang": "pt", "edu": 3.0},
    {"id": "gl", "text": "dous", "lang": "gl", "edu": 1.0},
    {"id": "en", "text": "three", "lang": "en", "edu": 3.0},
    {"id": "nameless", "text": "quatro", "edu": 3.0},
    {"id": "unscored", "text": "cinco", "lang": "pt", "edu": None},
    {"id": "nan", "text": "seis", "lang": "pt", "edu": float("nan")},
    {"id": "infinite", "text": "sete", "lang": "pt", "edu": float("inf")},
]
SCORES = {"lang": "lang", "edu": "edu"}


@pytest.fixture
def corpus(tmp_path):
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return tmp_path / "corpus.jsonl"


def test_text_columns_select_and_are_carried(corpus, tmp_path):
    artifact = select(corpus, None, tmp_path / "out", scores=SCORES, rule="lang in ['pt', 'gl'] and edu >= 1")
    assert sorted(chosen(artifact)) == ["gl", "infinite", "pt"]
    rejected = artifact.counts["rejected"]
    assert (rejected["score_missing"], rejected["score_nan"], rejected["rule_not_met"]) == (2, 1, 1)
    assert {document.id: document.scores for document in read_documents(artifact.path)}["pt"] == {"lang": "pt",
                                                                                                  "edu": 3.0}
    assert artifact.counts["mean_scores"] == {"edu": 2.0}  # of the finite ones
    json.loads((artifact.path / "counts.json").read_text(), parse_constant=pytest.fail)


def test_null_is_missing_unless_the_rule_asks_for_it(corpus, tmp_path):
    artifact = select(corpus, None, tmp_path / "out", scores={"edu": "edu"}, rule="edu is null or edu + 1 > 3")
    assert sorted(chosen(artifact)) == ["en", "infinite", "nameless", "pt", "unscored"]
    assert artifact.counts["rejected"]["score_missing"] == 0
    assert artifact.counts["rejected"]["score_nan"] == 1
    again = select(artifact.path, None, tmp_path / "again", scores={"edu": "edu"}, rule="edu is not null and edu < 4")
    assert sorted(chosen(again)) == ["en", "nameless", "pt"]


def test_a_huge_document_and_a_handful_of_them_are_said(tmp_path):
    tokenizer = byte_level_tokenizer(tmp_path / "tokenizer")
    rows = [{"id": str(number), "text": f"{number} " * (5_000 if number == 3 else 5)} for number in range(300)]
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    notes = select(tmp_path / "c.jsonl", tokenizer, tmp_path / "all", rule=None, scores={},
                   on_shortage="allow", budget_tokens=100_000).counts["notes"]
    assert len(notes) == 1
    assert notes[0].startswith("one document alone has")
    notes = select(tmp_path / "c.jsonl", tokenizer, tmp_path / "few", rule=None, scores={},
                   budget_tokens=100).counts["notes"]
    assert any("documents fill the budget" in note for note in notes)
    assert select(tmp_path / "c.jsonl", tokenizer, tmp_path / "fine", rule=None, scores={}, max_chars=5_000,
                  budget_tokens=3_000).counts["notes"] == []


def test_a_score_may_have_an_accent_however_it_is_written(tmp_path):
    (tmp_path / "c.jsonl").write_text(json.dumps({"id": "a", "text": "t", "q": 2.0}) + "\n")
    artifact = select(tmp_path / "c.jsonl", None, tmp_path / "out", scores={"avaliac\u0327a\u0303o": "q"},
                      rule="avaliação > 1")
    assert chosen(artifact) == ["a"]


def test_a_score_named_null_is_refused():
    with pytest.raises(UserError, match="'null' cannot be the name of a score"):
        validate(SelectSettings, {"corpus": "c", "tokenizer": None, "scores": {"null": "a"}}, "settings")
