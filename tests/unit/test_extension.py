"""A larger budget goes on where what is done is what it would have done, and is refused with the way out elsewhere."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_ext.artifacts import publish_in_place, write_json
from megatron_ext.data.blend import spread
from megatron_ext.errors import UserError
from megatron_ext.settings import overlay
from megatron_ext.training.resume import begin, changes_on_the_way, find_start
from megatron_ext.training.run_folder import RUN_STATE, checkpoint_folder, run_identity
from tests.unit.test_trunk import TOKENS, Lab

LONGER = {"train": {"budget_tokens": 16 * TOKENS}}
CONSTANT = {"schedule": {"style": "constant", "decay_iters": None}}
COSINE = {"schedule": {"style": "cosine", "decay_iters": None}}
IN_WARM_UP = overlay(COSINE, {"schedule": {"warmup_iters": 6}})
COUNTED = {"data": {"sources": {"a": {"fraction": None, "tokens": 1000}}}}


@pytest.fixture
def lab(tmp_path):
    return Lab(tmp_path)


@given(st.lists(st.integers(1, 999), min_size=1, max_size=5), st.integers(0, 300), st.integers(0, 300))
def test_a_longer_run_begins_with_the_samples_of_a_shorter_one(weights, shorter, more):
    shares = tuple(Fraction(weight, sum(weights)) for weight in weights)
    long = spread(shares, shorter + more)
    assert len(long) == shorter + more
    assert spread(shares, shorter).tolist() == long[:shorter].tolist()


@pytest.mark.parametrize(("changes", "iteration"), [
    ({}, 5), ({}, 7), (CONSTANT, 5), (CONSTANT, 10), (IN_WARM_UP, 5),
    ({"data": {"sources": {"a": {"fraction": 0.333}}}}, 7)])
def test_what_is_exact_goes_on_and_is_recorded(lab, changes, iteration):
    before, now = lab.config(**changes), lab.config(**overlay(changes, LONGER))
    begin(before, find_start(before), 1)
    lab.save(before, iteration)
    if iteration == 10:
        publish_in_place(before.output, kind="run", settings={"run": run_identity(before)}, inputs={}, counts={},
                         beside=lambda name: True)
    assert find_start(before).is_finished == (iteration == 10)
    start = find_start(now)
    assert (start.iteration, start.is_finished) == (iteration, False)
    begin(now, start, 1)
    assert changes_on_the_way(now.output) == [{"iteration": iteration, "key": "train.budget_tokens",
                                               "before": 10 * TOKENS, "now": 16 * TOKENS}]
    lab.save(now, 12)
    with pytest.raises(UserError, match=r"train\.budget_tokens was 4096, is 2560"):
        find_start(before)


@pytest.mark.parametrize(("changes", "iteration", "why"), [
    ({}, 8, "the WSD decay towards the earlier end began after iteration 7"),
    (COSINE, 5, "the cosine decay towards the earlier end began after iteration 1"),
    (COUNTED, 5, "amounts in tokens or epochs are spread over the budget"),
    ({"schedule": {"warmup_iters": None, "warmup_fraction": 0.1}}, 5,
     "the warm-up was 1 iterations and would be 1.625: keep it with schedule.warmup_tokens=256")])
def test_what_is_not_is_refused_in_a_line_with_the_way_out(lab, changes, iteration, why):
    before = lab.config(**changes)
    begin(before, find_start(before), 1)
    checkpoint = lab.save(before, iteration)
    with pytest.raises(UserError) as refusal:
        find_start(lab.config(**overlay(changes, LONGER)))
    told = str(refusal.value)
    assert why in told
    assert f"begin a branch, another output folder with start.checkpoint={checkpoint}" in told
    assert "\n" not in told


def test_a_warm_up_may_be_told_in_another_unit(lab):
    before = lab.config(schedule={"warmup_iters": None, "warmup_fraction": 0.1})
    begin(before, find_start(before), 1)
    lab.save(before, 5)
    assert find_start(lab.config(**overlay(LONGER, {"schedule": {"warmup_iters": None, "warmup_tokens": 256}}))
                      ).iteration == 5


def test_nothing_else_may_change_with_the_budget(lab):
    before = lab.config()
    begin(before, find_start(before), 1)
    lab.save(before, 5)
    with pytest.raises(UserError, match=r"train\.seed was 0, is 1"):
        find_start(lab.config(**overlay(LONGER, {"train": {"seed": 1}})))
    with pytest.raises(UserError, match=r"schedule\.decay_iters was 3, is 4"):
        find_start(lab.config(**overlay(LONGER, {"schedule": {"decay_iters": 4}})))


@pytest.mark.parametrize(("share", "is_refused"), [(0.7, False), (0.333, True)])
def test_a_checkpoint_of_a_version_with_another_order_is_not_gone_on_from(lab, share, is_refused):
    config = lab.config(data={"sources": {"a": {"fraction": share}}})
    folder = checkpoint_folder(config, 9)
    folder.mkdir(parents=True)
    write_json(folder / RUN_STATE, {"iteration": 9, "identity": run_identity(config)})
    publish_in_place(folder, kind="checkpoint", settings={}, inputs={}, counts={})
    if is_refused:
        with pytest.raises(UserError, match="older version, which dealt out its sources in another order"):
            find_start(config)
    else:
        assert find_start(config).iteration == 9
