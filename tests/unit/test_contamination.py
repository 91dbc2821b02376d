import json

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_ext.data.documents import read_documents
from megatron_ext.data.selection.contamination import Item, Matcher, read_items
from megatron_ext.errors import UserError
from megatron_ext.parts import Merge, Part
from tests.unit.selecting import ROWS, select
from tests.unit.tokenizer_folders import byte_level_tokenizer

LONG = "Em que ano D. Pedro proclamou, às margens do Ipiranga, a independência do Brasil de Portugal?"  # 16 words
SHORT = "Qual é a capital do estado do Piauí hoje?"  # 9 words
TINY = "Quanto é dois mais dois?"
ITEMS = [Item("historia", "1", LONG), Item("geografia", "1", SHORT), Item("geografia", "2", TINY)]


def pairs(texts, items=ITEMS, **lengths):
    hits = Matcher(items, lengths.get("ngram", 13), lengths.get("short_ngram", 8)).find(pa.array(texts))
    return sorted(zip(hits.documents.tolist(), hits.items.tolist(), strict=True))


def test_case_accents_and_punctuation_do_not_hide_an_item():
    hidden = "x " + LONG.upper().replace("À", "A").replace("Ê", "E").replace(",", " --") + " y"
    assert pairs(["nada", hidden, f"antes. {SHORT.lower()}"]) == [(1, 0), (2, 1)]


def test_twelve_words_of_a_long_item_and_items_that_are_too_short_are_no_hit():
    words = LONG.split()
    assert pairs([" ".join(words[:12])]) == []
    assert pairs([" ".join(words[2:15])]) == [(0, 0)]
    assert pairs([TINY * 3]) == []
    assert Matcher(ITEMS, 13, 8).is_checked.tolist() == [True, True, False]


def test_an_ngram_does_not_reach_over_the_end_of_a_document():
    words = LONG.split()
    assert pairs([" ".join(words[:8]), " ".join(words[8:])]) == []


WORDS = st.lists(st.sampled_from(["a", "b", "c", "d"]), max_size=12)


@settings(deadline=None, max_examples=100)
@given(st.lists(WORDS, max_size=5), st.lists(WORDS, max_size=5))
def test_the_hits_are_those_of_a_plain_search(documents, items):
    def grams(words, length):
        return {tuple(words[i:i + length]) for i in range(len(words) - length + 1)}

    expected = [(d, i) for d, document in enumerate(documents) for i, item in enumerate(items)
                if len(item) >= 2 and grams(item, 4 if len(item) >= 4 else 2)
                & grams(document, 4 if len(item) >= 4 else 2)]
    found = pairs(pa.array([" ".join(words) for words in documents], pa.string()).to_pylist() or [""],
                  [Item("t", str(i), " ".join(words)) for i, words in enumerate(items)], ngram=4, short_ngram=2)
    assert found == expected


def test_the_count_goes_to_the_manifest_and_hits_can_be_removed(tmp_path):
    tokenizer = byte_level_tokenizer(tmp_path / "tokenizer")
    rows = [row | {"text": f"{row['text']} {LONG}" if i % 5 == 0 else row["text"]} for i, row in enumerate(ROWS[:60])]
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "items.jsonl").write_text("".join(json.dumps(vars(item)) + "\n" for item in ITEMS))
    values = {"rule": None, "test_items": tmp_path / "items.jsonl", "budget_tokens": 500}
    reported = select(tmp_path / "c.jsonl", tokenizer, tmp_path / "reported", **values)
    holding = [document for document in read_documents(reported.path) if LONG in document.text]
    assert holding
    assert reported.counts["contamination"] == {
        "action": "report", "ngram": 13, "short_ngram": 8, "documents_hit": len(holding), "tasks": {
            "geografia": {"items": 2, "items_checked": 1, "items_hit": 0, "documents_hit": 0},
            "historia": {"items": 1, "items_checked": 1, "items_hit": 1, "documents_hit": len(holding)}}}
    values["contaminated"] = "remove"
    removed = select(tmp_path / "c.jsonl", tokenizer, tmp_path / "removed", **values)
    documents = list(read_documents(removed.path))
    assert all(LONG not in document.text for document in documents)
    assert removed.counts["rejected"]["contaminated"] == removed.counts["contamination"]["documents_hit"] > 0
    assert removed.counts["tokens"] - documents[-1].num_tokens < 500 <= removed.counts["tokens"]
    for index in range(2):
        select(tmp_path / "c.jsonl", tokenizer, tmp_path / "merged", Part(index, 2), **values)
    merged = select(tmp_path / "c.jsonl", tokenizer, tmp_path / "merged", Merge(2), **values)
    assert merged.content_hash == removed.content_hash


def test_bad_items_are_named(tmp_path):
    with pytest.raises(UserError, match="holds no test items"):
        read_items(tmp_path)
    (tmp_path / "a.jsonl").write_text('{"task": "t", "id": 1, "text": "x"}\n{"task": "t"}\n')
    with pytest.raises(UserError, match=r"a\.jsonl, line 2 is not a test item"):
        read_items(tmp_path)
