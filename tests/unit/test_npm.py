"""NPM, and refusing to compare what cannot be compared."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from evaluation.poeta import npm, task_names
from megatron_ext.artifacts import produce
from megatron_ext.errors import UserError


def results(**changes: object) -> dict:
    return {"profile": "official", "data": "official", "deviations": [], "task_set": ["faquad"], **changes}


def test_ends_of_the_scale() -> None:
    assert npm.task_npm("tweetsentbr_greedy", 32.4) == 0
    assert npm.task_npm("tweetsentbr_greedy", 100) == 100
    assert npm.task_npm("poscomp_greedy", 0.2) == pytest.approx(-60)


def test_means_by_group() -> None:
    per_task = dict.fromkeys(task_names(), 10.0) | {"faquad": 54.0, "sst2_pt_greedy": -22.0}
    means = npm.mean_npm(per_task)
    assert means["native"] == pytest.approx(10 + 44 / 12)
    assert means["translated"] == pytest.approx(10 - 32 / 32)
    assert means["all"] == pytest.approx(10 + (44 - 32) / 44)


def test_nan_spreads_and_an_empty_group_is_none() -> None:
    means = npm.mean_npm({"assin_sts_greedy": math.nan, "faquad": 1.0})
    assert math.isnan(means["all"]) and math.isnan(means["native"])
    assert means["translated"] is None


def test_preferred_score_of_a_resample() -> None:
    right = {"acc": 100.0, "f1-macro": ["neutra", "neutra"], "f1-weighted": ["neutra", "neutra"], "invalid": 0.0}
    wrong = {"acc": 0.0, "f1-macro": ["neutra", "positiva"], "f1-weighted": ["neutra", "positiva"], "invalid": 0.0}
    assert npm.preferred_score("tweetsentbr_greedy", [right, right, wrong]) == pytest.approx(100 * (0.8 + 0) / 2)
    assert npm.preferred_score("tweetsentbr_greedy", [right] * 5) == 100
    assert math.isnan(npm.preferred_score("tweetsentbr_greedy", []))


@pytest.mark.parametrize("change", [
    {"profile": "clean"}, {"data": "sample"}, {"task_set": ["faquad", "mkqa_greedy"]},
    {"deviations": ["at most 4 examples a task"]},
])
def test_mixtures_are_refused(change: dict) -> None:
    npm.refuse_mixture({"one": results(), "two": results()})
    with pytest.raises(UserError, match=f"one and two cannot be compared: {next(iter(change))}"):
        npm.refuse_mixture({"one": results(), "two": results(**change)})


def test_reading_an_evaluation(tmp_path: Path) -> None:
    def make(folder: Path) -> dict:
        (folder / "results.json").write_text('{"npm": {"all": NaN}}')
        (folder / "examples.jsonl").write_text(json.dumps({"output": "a\u2028b"}, ensure_ascii=False) + "\n")
        return {}

    produce(tmp_path / "scores", kind="evaluation", settings={}, inputs={}, make=make)
    assert math.isnan(npm.load_results(tmp_path / "scores")["npm"]["all"])
    assert npm.load_examples(tmp_path / "scores") == [{"output": "a\u2028b"}]
