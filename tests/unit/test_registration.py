"""What a study asks is written down before anything runs; what is edited later is shown."""

from pathlib import Path

from megatron_ext.study.config import load_study
from megatron_ext.study.registration import register

QUICKSTART = Path("examples/quickstart/study.yaml")


def registered(work, *overrides):
    return register(load_study(QUICKSTART, list(overrides)), work)


def test_the_first_launch_names_the_outcome_and_a_second_one_changes_nothing(tmp_path):
    first = registered(tmp_path)
    assert first["question"]["evaluation"]["primary"] == "neutral"
    assert registered(tmp_path) == first and not first["edits"]


def test_an_outcome_chosen_later_is_shown_and_stays_shown(tmp_path):
    first = registered(tmp_path)
    edit = {"key": "evaluation.primary", "before": "neutral", "now": "npm"}
    assert registered(tmp_path, "evaluation.primary=npm") == {**first, "edits": [edit]}
    assert registered(tmp_path, "evaluation.primary=npm")["edits"] == [edit]
    assert registered(tmp_path)["edits"] == [edit, {"key": "evaluation.primary", "before": "npm", "now": "neutral"}]


def test_more_seeds_and_other_rules_are_edits(tmp_path):
    registered(tmp_path)
    edits = registered(tmp_path, "seeds=[0, 1]", "subsets.low.budget_tokens=10000")["edits"]
    assert [one["key"] for one in edits] == ["seeds", "subsets.low.budget_tokens"]


def test_layouts_and_places_are_no_part_of_the_question(tmp_path):
    registered(tmp_path)
    assert not registered(tmp_path, "run.parallel.tensor_model_parallel_size=3", "run.validation.interval_tokens=4096",
                          "corpus.path=tests", "jobs.run.time=1:00:00")["edits"]
