import numpy as np
import pytest
from scipy import stats

from evaluation.item_scores import ListScores, item_scores, macro_f1_scores, mean_scores, pearson_scores
from evaluation.poeta.npm import preferred_score
from evaluation.statistics import (
    Model,
    TaskReplicates,
    bootstrap_weights,
    combine,
    estimate_contrast,
    holm,
    minimum_detectable_effect,
    permutation_p,
    settle,
    swap_masks,
    task_generator,
)

LABELS = ["negativa", "neutra", "positiva"]
SINGLE = [Model("a", True), Model("b", True)]


def weights(num_items, num_resamples=50, seed=0):
    return np.concatenate(list(bootstrap_weights(num_items, num_resamples, np.random.default_rng(seed))))


def replicate(answers, num_resamples=400, seed=0):
    """One task of right and wrong answers, `[n, models]`, on a scale on which NPM = 100 x accuracy."""
    answers = np.asarray(answers, dtype=float)
    chosen = weights(len(answers), num_resamples, seed)
    return TaskReplicates(len(answers), 100 * answers.mean(axis=0), 100 * chosen @ answers / len(answers),
                          100 / len(answers))


def test_every_resample_draws_as_many_items_as_there_are_and_all_equally():
    drawn = weights(40, 2000)
    assert (drawn.sum(axis=1) == 40).all()
    assert np.allclose(drawn.mean(axis=0), 1, atol=0.1)
    assert np.isclose(drawn.var(), 1 - 1 / 40, atol=0.05)


def random_pairs(kind, n=60, seed=3):
    rng = np.random.default_rng(seed)
    if kind == "f1-macro":
        return [[str(rng.choice([*LABELS, "outra"])), LABELS[i % 3]] for i in range(n)]
    return [[float(x), float(y)] for x, y in zip(rng.normal(3, 1, n), rng.normal(3, 1, n), strict=True)]


@pytest.mark.parametrize(("task", "metric", "make"), [
    ("tweetsentbr_greedy", "f1-macro", macro_f1_scores), ("assin_sts_greedy", "pearson", pearson_scores)])
def test_fast_scores_equal_the_tasks_own_metric_on_every_resample_and_exchange(task, metric, make):
    pairs, others = random_pairs(metric, n=12), random_pairs(metric, n=12, seed=4)
    fast, other = make(pairs), make(others)
    slow, slow_other = (ListScores([{metric: pair} for pair in one], lambda items: preferred_score(task, items))
                        for one in (pairs, others))
    chosen = weights(12)
    assert np.allclose(fast.resampled(chosen), slow.resampled(chosen), equal_nan=True)
    mask = np.concatenate(list(swap_masks(12, 40, np.random.default_rng(1))))
    for quick, exact in zip(fast.swapped(other, mask), slow.swapped(slow_other, mask), strict=True):
        assert np.allclose(quick, exact, equal_nan=True)


@pytest.mark.parametrize("make", [mean_scores, pearson_scores])
def test_scores_do_not_depend_on_the_order_in_which_a_processor_adds(make):
    rng = np.random.default_rng(0)
    values = rng.random(501) / 3 if make is mean_scores else rng.normal(3, 1, (501, 2)) / 3
    other, order = rng.permutation(values), rng.permutation(501)
    chosen, mask = weights(501), np.concatenate(list(swap_masks(501, 50, rng)))
    here, there = make(values), make(values[order])
    assert (here.resampled(chosen) == there.resampled(chosen[:, order])).all()
    for mine, theirs in zip(here.swapped(make(other), mask), there.swapped(make(other[order]), mask[:, order]),
                            strict=True):
        assert (mine == theirs).all()
    assert np.allclose(here.resampled(np.ones((1, 501))), make(values).finish(make(values).features.sum(0)[None], 501),
                       rtol=1e-10)


def test_what_differs_in_the_last_bit_is_equal_once_it_is_told():
    assert settle(25.260912238766636) == settle(25.26091223876664)
    assert str(settle(-1e-17)) == "0.0"
    assert settle(None) is None
    assert np.isnan(settle(np.nan))
    values = np.random.default_rng(0).random((7, 5))
    assert np.allclose(combine(values, np.array([1, 0, -0.5, 0, 2])), values @ np.array([1, 0, -0.5, 0, 2]))


def test_the_form_of_a_metric_is_found_by_what_reproduces_the_stored_score():
    pairs = random_pairs("f1-macro")
    items = [{"f1-macro": pair} for pair in pairs]
    score = preferred_score("tweetsentbr_greedy", items)
    [found] = item_scores("tweetsentbr_greedy", "f1-macro", [score], 100.0, [items])
    assert np.isclose(found.resampled(np.ones((1, 60)))[0], score)
    answers = [{"f1": [output, ["gato preto", "gato"]]} for output in ("gato", "cachorro", "o gato preto", "preto")]
    score = preferred_score("faquad", answers)
    [found] = item_scores("faquad", "f1", [score], 1.0, [answers])
    assert type(found) is type(mean_scores([1.0]))
    assert np.isclose(found.resampled(np.ones((1, 4)))[0], score)


def test_examples_that_do_not_give_the_stored_score_are_refused():
    items = [{"acc": 1.0}, {"acc": 0.0}]
    with pytest.raises(ValueError, match=r"examples of model 2 .* acc = 0\.9 "):
        item_scores("boolq_pt_greedy", "acc", [0.5, 0.9], 1.0, [items, items])


def test_a_large_sample_gives_the_textbook_interval_and_p():
    rng = np.random.default_rng(5)
    answers = rng.random((2000, 2)) < [0.6, 0.5]
    difference = answers[:, 0].astype(float) - answers[:, 1]
    error = 100 * difference.std() / np.sqrt(2000)
    estimate = estimate_contrast({"a": 1, "b": -1}, [replicate(answers, 4000)], SINGLE)
    assert np.isclose(estimate.value, 100 * difference.mean())
    assert np.isclose(estimate.standard_error, error, rtol=0.05)
    assert np.isclose(estimate.low, estimate.value - 1.96 * error, atol=0.3)
    assert np.isclose(estimate.high, estimate.value + 1.96 * error, atol=0.3)
    assert np.isclose(estimate.p, 2 * stats.norm.sf(estimate.value / error), rtol=0.5)


def test_items_that_are_all_alike_give_no_interval_but_a_detectable_effect():
    estimate = estimate_contrast({"a": 1, "b": -1}, [replicate(np.zeros((8, 2)))], SINGLE)
    assert (estimate.value, estimate.low, estimate.high, estimate.p) == (0, None, None, None)
    assert estimate.minimum_detectable > 2 * 100 / 8
    assert estimate_contrast({"a": 1}, [replicate([[1, 0]])], SINGLE).low is None


def test_seeds_that_differ_widen_the_interval():
    rng = np.random.default_rng(0)
    models = [Model(name, True) for name in "ab" for _ in range(3)]

    def width(spread):
        skills = 0.5 + np.array([-spread, 0, spread] * 2)
        estimate = estimate_contrast({"a": 1, "b": -1}, [replicate(rng.random((400, 6)) < skills)], models)
        return estimate.high - estimate.low

    assert width(0.15) > 2.5 * width(0)


def test_a_given_model_has_no_spread_between_seeds():
    answers = np.random.default_rng(1).random((300, 4)) < [0.3, 0.5, 0.7, 0.5]
    trained = [Model("a", True)] * 3
    task = [replicate(answers)]
    free = estimate_contrast({"base": 1}, task, [*trained, Model("base", False)])
    seeded = estimate_contrast({"base": 1}, task, [*trained, Model("base", True)])
    assert free.standard_error < seeded.standard_error


def test_permutation_p_by_hand_and_holm_by_hand():
    assert permutation_p(2.0, np.array([-3.0, -2.0, 0.0, 1.0])) == pytest.approx(3 / 5)
    assert holm([0.01, None, 0.04, 0.03]) == [pytest.approx(0.03), None, pytest.approx(0.06), pytest.approx(0.06)]


def test_the_detectable_effect_is_that_of_the_power_formula():
    assert minimum_detectable_effect(1.0, 1e9) == pytest.approx(1.96 + 0.8416, abs=1e-3)
    assert minimum_detectable_effect(1.0, 7) > 3.2


def test_random_numbers_depend_on_seed_task_and_purpose_alone():
    first, again = (task_generator(1, "a", "bootstrap").random() for _ in range(2))
    assert first == again
    assert len({first, task_generator(2, "a", "bootstrap").random(), task_generator(1, "b", "bootstrap").random(),
                task_generator(1, "a", "permutation").random()}) == 4


def simulate(num_studies, effect, *, num_seeds=1, seed_spread=0.0, num_items=100, num_tasks=3, num_resamples=400):
    """Estimates of a - b over simulated studies: items share their difficulty, seeds have a skill of their own."""
    rng = np.random.default_rng(11)
    models = [Model(name, True) for name in "abcd" for _ in range(num_seeds)]
    skill = 0.5 + np.repeat([effect / 100, 0, 0, 0], num_seeds)
    for _ in range(num_studies):
        own = skill + rng.normal(0, seed_spread, len(models))
        chance = np.clip(rng.normal(0, 0.15, (num_tasks, num_items, 1)) + own, 0, 1)
        answers = rng.random(chance.shape) < chance
        tasks = [replicate(one, num_resamples, int(rng.integers(2**31))) for one in answers]
        yield estimate_contrast({"a": 1, "b": -1}, tasks, models)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [{}, {"num_seeds": 3, "seed_spread": 0.03}])
def test_the_interval_covers_the_truth_in_93_to_97_percent_of_1000_studies(kind):
    estimates = list(simulate(1000, effect=3, **kind))
    covered = np.mean([one.low <= 3 <= one.high for one in estimates])
    assert 0.93 <= covered <= 0.97


@pytest.mark.slow
def test_an_effect_is_found_with_the_power_that_was_predicted_and_none_where_there_is_none():
    detectable = np.median([one.minimum_detectable for one in simulate(50, effect=0)])
    found = np.mean([one.p <= 0.05 for one in simulate(500, effect=detectable)])
    assert 0.74 <= found <= 0.87
    false_alarms = np.mean([one.p <= 0.05 for one in simulate(1000, effect=0)])
    assert false_alarms <= 0.05 + 2.5 * np.sqrt(0.05 * 0.95 / 1000)


@pytest.mark.slow
def test_the_permutation_test_raises_no_more_false_alarms_than_it_says():
    rng = np.random.default_rng(2)
    alarms = []
    for _ in range(1000):
        first, second = (macro_f1_scores([[LABELS[guess], LABELS[i % 3]] for i, guess in enumerate(guesses)])
                         for guesses in rng.integers(3, size=(2, 45)))
        ones = np.ones((1, 45))
        observed = float(first.resampled(ones)[0] - second.resampled(ones)[0])
        mask = next(iter(swap_masks(45, 300, rng)))
        mine, theirs = first.swapped(second, mask)
        alarms.append(permutation_p(observed, mine - theirs) <= 0.05)
    assert 0.03 <= np.mean(alarms) <= 0.07
