"""The paragraph for a paper follows what the study did."""

import json

import pytest

from evaluation.report.methods import methods_paragraph
from evaluation.report.page import gather, render
from evaluation.report.record import StudyRecord
from evaluation.verdicts import ALPHA, MIN_ITEMS
from tests.unit.simulated_study import write_study


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return write_study(tmp_path_factory.mktemp("study"), num_items=40)


@pytest.fixture
def record(study):
    return StudyRecord.read(study)


def paragraph(record):
    return gather(record)["methods"]


def test_it_tells_every_stage_with_its_numbers(record):
    numbers = gather(record)
    text = numbers["methods"]
    assert text in render(numbers).replace("&#34;", '"').replace("&#39;", "'").replace("&gt;", ">").replace("&lt;", "<")
    for told in ("the subsets “high” (rule stem > 2.5", "smollm2-135m in 4 conditions", "in their training data alone",
                 "3 seeds a condition (0, 1, 2)", "4 tasks of PoETa V2 (160 items, official data)", "official protocol",
                 "2,000 resamples", "the spread between seeds", "t tests", f"at least {MIN_ITEMS} items",
                 f"at most {ALPHA:g}", "share 13 consecutive words", "styles “easy”, “medium”, “hard” and “qa”",
                 f"ended at {numbers['training']['budget_tokens']:,} tokens"):
        assert told in text, told
    for blend in numbers["training"]["blends"]:
        assert f"“{blend['condition']}” saw " in text
    kept = numbers["rewriting"]["subsets"][0]
    assert f"{kept['num_survived']:,} of {kept['num_chunks']:,}" in text
    assert ".." not in text
    assert "None" not in text


def test_fewer_conditions_and_one_seed_change_it(tmp_path):
    text = paragraph(StudyRecord.read(write_study(tmp_path, num_items=40, seeds=(7,), conditions=("low", "high"))))
    assert "in 2 conditions" in text
    assert "1 seed a condition (7)" in text
    assert "permutation tests" in text
    assert "one run a condition, so they do not cover the choice of seed" in text
    assert "“high with rewrites” saw" not in text


@pytest.mark.parametrize("section, value, told", [
    ("settings", {"base_model": "org/other-model"}, "pretraining of org/other-model in"),
    ("settings", {"rewriter": {"model": "/models/Qwen2.5-7B-Instruct"}}, "Qwen2.5-7B-Instruct rewrote chunks of “low”"),
    ("settings", {"corpus": {"path": "hf://org/corpus"}}, "From hf://org/corpus we selected"),
    ("registration", {"primary": "neutral", "sha256": "ab" * 32, "edits": []},
     "primary outcome (neutral) was registered before the first run (sha256 abababababababab)"),
    ("registration", {"primary": "npm", "sha256": "ab" * 32, "edits": [{"key": "a", "before": 1, "now": 2}]},
     "and edited afterwards 1 time"),
])
def test_a_change_of_the_study_changes_the_sentence(record, section, value, told):
    before = paragraph(record)
    assert told not in before
    record.values[section] = value
    assert told in paragraph(record)


def test_what_runs_differ_in_besides_data_is_told(record):
    numbers = gather(record)
    contract = numbers["training"]["contract"]
    contract["differing"] = [{"key": "optimizer.lr", "values": "", "is_allowed": True}]
    contract["same_base"] = False
    assert "in their training data and in optimizer.lr and starting weights" in methods_paragraph(record, numbers)


def test_of_what_is_missing_nothing_is_told(tmp_path):
    (tmp_path / "study.json").write_text(json.dumps({"name": "nothing"}))
    assert paragraph(StudyRecord.read(tmp_path / "study.json")) == ""
