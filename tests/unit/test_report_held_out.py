"""The page of a study whose primary outcome is a held-out text."""

import re
from pathlib import Path

import pytest

from evaluation.compare_held_out import CompareHeldOutSettings, compare_held_out
from evaluation.report.page import ReportSettings, gather, render, write_report
from evaluation.report.record import StudyRecord
from megatron_ext.artifacts import write_json
from tests.unit.test_held_out_comparison import EFFECTS, write_held_out


@pytest.fixture
def record(tmp_path):
    folders = {name: [write_held_out(tmp_path / f"{name}{seed}", effects, seed=[number, seed])
                      for seed in range(1 if name == "base" else 2)]
               for number, (name, effects) in enumerate(EFFECTS.items())}
    compare_held_out(CompareHeldOutSettings(
        held_out=folders, baseline="low", neutral=["neutral"], primary="neutral", num_resamples=1000,
        trained_on={"high": ["high"], "low": ["low"]}), tmp_path / "compare")
    edits = [{"key": "evaluation.primary", "before": "npm", "now": "neutral"}]
    write_json(tmp_path / "study.json", {
        "name": "held out", "conditions": {}, "held_out_comparison": "compare",
        "registration": {"sha256": "f" * 64, "primary": "neutral", "edits": edits}})
    return tmp_path / "study.json"


def words(page):
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page[page.index("</style>"):]))


def test_it_begins_with_the_verdict_on_neutral_text(record):
    numbers = gather(StudyRecord.read(record))
    assert re.fullmatch(r"On “neutral” text “high” is 0\.0\d\d bits a byte better than “low”\.",
                        numbers["verdict"]["text"])
    assert "fewer, which is better" in numbers["verdict"]["verdicts"][0]
    assert [text["name"] for text in numbers["held_out"]["texts"]] == ["neutral", "high", "low"]


def test_it_says_what_a_lower_loss_on_the_own_source_is_and_what_was_edited(record):
    told = words(render(gather(StudyRecord.read(record))))
    assert "shows that it learnt, not that it is a better model" in told
    assert "learnt its own source: no better model" in told
    assert "“neutral” , the primary outcome" in told or "“neutral”, the primary outcome" in told
    assert "Edited after the first launch" in told and "evaluation.primary" in told


def test_better_and_worse_follow_the_direction_of_the_measure(record):
    neutral = gather(StudyRecord.read(record))["held_out"]["texts"][0]
    rows = {row["label"]: row for family in neutral["families"] for row in family["rows"]}
    assert rows["high − low"]["estimate"]["value"] < 0
    assert rows["high − low"]["direction"] == "better"


def test_its_numbers_are_the_content_of_the_report(record, tmp_path):
    artifact = write_report(ReportSettings(study=record), tmp_path / "report")
    assert (Path(artifact.path) / "report.json").exists()
    assert "held out comparison" in artifact.manifest["request"]["inputs"]
