"""Noise within runs, signal of strangers, and neither from the compared arms."""

import json

import numpy as np
import pytest

from evaluation.compare import CompareSettings, compare_evaluations
from evaluation.task_signal import LAST, _noise, runs_along
from megatron_ext.artifacts import produce
from megatron_ext.errors import UserError
from megatron_ext.study.graph import build_graph
from tests.unit.simulated_study import TASKS, write_evaluation
from tests.unit.test_study import load, study_values  # noqa: F401

STEPS = (1000, 2000, 3000, 4000)


@pytest.fixture
def evaluate(tmp_path):
    def evaluate(name, skill, seed=0, **how):
        def make(place):
            (place / "weights").write_text(name)
            return {}

        model = produce(tmp_path / "models" / name, kind="hf_model", settings={}, inputs={}, make=make).path
        return write_evaluation(tmp_path / name, model, skill, seed=seed, **how).path

    return evaluate


@pytest.fixture
def arms(evaluate):
    """Condition -> tokens -> evaluations of two runs that learn."""
    return {name: {tokens: [evaluate(f"{name}-{tokens}-{seed}", skill + tokens / 20_000, seed=[number, seed, tokens])
                            for seed in range(2)] for tokens in STEPS}
            for number, (name, skill) in enumerate({"low": 0.45, "high": 0.5}.items())}


def npm(place, task):
    return json.loads((place / "results.json").read_text())["tasks"][task]["npm"]


def compared(arms, evaluate, **more):
    final = {name: points[STEPS[-1]] for name, points in arms.items()} | {"base": [evaluate("base", 0.4, seed=90)]}
    return compare_evaluations(CompareSettings(evaluations=final, baseline="low", num_resamples=200,
                                               along_training=arms, **more))


def test_noise_signal_and_the_rest_are_those_of_the_definition(arms, evaluate):
    outside = {"small": evaluate("small", 0.3, seed=91), "large": evaluate("large", 0.9, seed=92)}
    rows = {row["task"]: row for row in compared(arms, evaluate, outside=outside)["signal"]}
    assert rows.keys() == TASKS.keys()
    task = "enem_greedy"
    runs = [[npm(arms[name][tokens][seed], task) for tokens in STEPS] for name in arms for seed in range(2)]
    assert rows[task]["noise"] == pytest.approx(np.sqrt(np.mean([np.var(run, ddof=1) for run in runs])), abs=1e-8)
    strangers = [npm(place, task) for place in (*outside.values(), evaluate("base", 0.4, seed=90))]
    assert rows[task]["signal"] == pytest.approx(np.std(strangers, ddof=1), abs=1e-8)
    assert rows[task]["ratio"] == pytest.approx(rows[task]["signal"] / rows[task]["noise"], abs=1e-6)
    assert (rows[task]["num_outside"], rows[task]["num_runs"]) == (3, 4)
    assert 0.3 < rows[task]["monotonicity"] <= 1
    assert rows[task]["from_chance"] > 3


def test_without_strangers_there_is_no_signal_and_the_arms_never_stand_in(arms, evaluate):
    rows = compared(arms, evaluate)["signal"]
    assert {(row["signal"], row["ratio"], row["num_outside"]) for row in rows} == {(None, None, 1)}
    with pytest.raises(UserError, match=r"outside\.another: it is the same as high \(model 1\), which is compared"):
        compared(arms, evaluate, outside={"another": arms["high"][STEPS[-1]][0]})


def test_strangers_must_have_answered_the_same(arms, evaluate):
    with pytest.raises(UserError, match="another"):
        compared(arms, evaluate, outside={"another": evaluate("another", 0.5, num_items=40)})


def test_noise_is_that_of_the_last_checkpoints_alone():
    run = [0.0, 50.0, *[10.0, 12.0] * 3]
    assert _noise([run[-LAST:]]) == pytest.approx(np.std(run[-LAST:], ddof=1))
    assert _noise([[1.0, 2.0]]) is None
    assert _noise([[1.0, 2.0, float("nan")]]) is None


def test_runs_are_followed_by_their_seed():
    assert runs_along({"a": {1: ["a10", "a11"], 2: ["a20", "a21"]}, "b": {1: ["b10"], 2: []}}) == [
        {1: "a10", 2: "a20"}, {1: "a11", 2: "a21"}]


def test_a_study_evaluates_them_and_compares_without_them(load, study_values):  # noqa: F811
    study_values["evaluation"] |= {"outside": {"larger": "some/larger"}}
    nodes = {node.name: node for node in build_graph(load(study_values))}
    assert nodes["evaluate/outside/larger"].inputs["model"].settings["model"] == "some/larger"
    assert nodes["compare/conditions"].inputs["outside.larger"] is nodes["evaluate/outside/larger"]
    study_values["evaluation"]["outside"] = {"l.1": "some/larger", "same": "some/model"}
    with pytest.raises(UserError, match=r"(?s)'l\.1' cannot be a name.*outside\.same: 'some/model' is the base model"):
        build_graph(load(study_values))


def test_means_over_the_last_checkpoints_are_compared(arms, evaluate):
    three = compared(arms, evaluate, mean_of_last=3)
    expected = np.mean([npm(arms["high"][tokens][seed], task) for tokens in STEPS[1:] for seed in range(2)
                        for task in TASKS])
    assert three["conditions"]["high"]["npm"]["all"]["value"] == pytest.approx(expected, abs=1e-8)
    base = three["conditions"]["base"]["npm"]["all"]
    assert base == compared(arms, evaluate)["conditions"]["base"]["npm"]["all"]
    last, mean = (one["differences"][0]["npm"]["all"]["standard_error"] for one in (compared(arms, evaluate), three))
    assert mean < last  # answers of several checkpoints say more than those of one
    assert "NPM is the mean over the last 3 checkpoints of each run." in three["caveats"]
    single = {name: {tokens: places[:1] for tokens, places in points.items()} for name, points in arms.items()}
    assert 0 <= compared(single, evaluate, mean_of_last=2)["differences"][0]["npm"]["all"]["p"] <= 1  # by permutation
    with pytest.raises(UserError, match=r"mean_of_last: of low \(model 1\) the checkpoint 4 before the last was not"):
        compared(arms, evaluate, mean_of_last=5)


def test_a_study_has_to_evaluate_so_many_checkpoints(load, study_values):  # noqa: F811
    study_values["evaluation"] |= {"mean_of_last": 3, "checkpoints": [256]}
    with pytest.raises(UserError, match=r"evaluation\.mean_of_last = 3, but of (low|high) 2 checkpoints are evaluated"):
        build_graph(load(study_values))
    study_values["evaluation"]["mean_of_last"] = 2
    nodes = {node.name: node for node in build_graph(load(study_values))}
    assert nodes["compare/conditions"].settings["mean_of_last"] == 2
