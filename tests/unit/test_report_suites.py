"""The page of a study with suites: their tasks stand in the table, their verdicts at the head."""

import re

import pytest

pytest.importorskip("lm_eval")
from evaluation.compare_suites import CompareSuitesSettings, compare_suites
from evaluation.report.page import gather, render
from evaluation.report.record import StudyRecord
from megatron_ext.artifacts import write_json
from tests.unit.test_compare_suites import SKILLS, write_evaluation
from tests.unit.test_report_held_out import words


def page_of(tmp_path, **settings):
    folders = {name: [write_evaluation(tmp_path / name, number, skill)]
               for number, (name, skill) in enumerate(SKILLS.items())}
    compare_suites(CompareSuitesSettings(evaluations=folders, baseline="low", num_resamples=400, **settings),
                   tmp_path / "compare")
    write_json(tmp_path / "study.json", {"name": "suites", "conditions": {}, "suite_comparison": "compare"})
    numbers = gather(StudyRecord.read(tmp_path / "study.json"))
    return numbers, words(render(numbers))


def test_the_tasks_of_a_suite_stand_in_the_table(tmp_path):
    numbers, told = page_of(tmp_path)
    assert "“mine”: points of acc, more is better; 400 items of 2 tasks; chance gives 25.0" in told
    assert "“mine”: bits a byte, less is better; 200 items of 1 task" in told
    for part in numbers["suites"]["parts"]:
        for task in part["tasks"]:
            value = f"{task['cells'][2]['value']:.{1 if 'acc' in part['unit'] else 3}f}"
            assert re.search(rf" {task['name']} {task['num_items']} .* {value}", told)
    assert any("proprio is not compared" in one for one in numbers["suites"]["caveats"])


def test_a_suite_may_be_the_primary_outcome(tmp_path):
    numbers, told = page_of(tmp_path, primary="mine")
    assert re.fullmatch(r"On suite “mine” “high” is \d+\.\d points of acc better than “low”\.",
                        numbers["verdict"]["text"])
    assert "“mine” , the primary outcome" in told or "“mine”, the primary outcome" in told
