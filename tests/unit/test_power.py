"""What a study could find, told before it is made: against what a comparison tells afterwards."""

import pytest

from evaluation.compare import CompareSettings, compare_evaluations
from evaluation.power import PowerSettings, detectable_effects, plan_power
from megatron_ext.errors import UserError
from tests.unit.simulated_study import evaluator

CORRELATION = 0.25  # of the simulated answers: variance of an item's difficulty, 0.25², over that of an answer, 0.25


@pytest.fixture
def evaluate(tmp_path):
    return evaluator(tmp_path)


def test_the_effect_told_beforehand_is_that_of_the_comparison(evaluate):
    told = detectable_effects(PowerSettings(evaluation=evaluate("base", num_items=300), item_correlation=CORRELATION))
    found = compare_evaluations(CompareSettings(
        evaluations={name: [evaluate(name, num_items=300, seed=seed)] for seed, name in enumerate("abcd", start=1)},
        baseline="a", interactions={"x": list("abcd")}, num_resamples=1000))
    assert told["num_items"] == 1200
    assert told["minimum_detectable"]["difference"] == pytest.approx(
        found["differences"][0]["npm"]["all"]["minimum_detectable"], rel=0.1)
    assert told["minimum_detectable"]["interaction"] == pytest.approx(
        found["interactions"][0]["npm"]["all"]["minimum_detectable"], rel=0.1)


def test_seeds_items_and_correlation_make_it_smaller_and_spread_larger(evaluate):
    base = evaluate("base")

    def effect(**settings):
        values = {"evaluation": base, "num_seeds": 2, "seed_spread_npm": 1.0} | settings
        return detectable_effects(PowerSettings(**values))["minimum_detectable"]["difference"]

    assert effect(num_seeds=4) < effect() < effect(num_seeds=1)
    assert effect(item_correlation=0.8) < effect()
    assert effect(seed_spread_npm=3.0) > effect()
    assert effect(evaluation=evaluate("large", num_items=400)) < effect()


def test_answers_that_are_all_alike_tell_nothing(evaluate, tmp_path):
    with pytest.raises(UserError, match="too few, or all answered alike"):
        plan_power(PowerSettings(evaluation=evaluate("one", num_items=1)), tmp_path / "power")
