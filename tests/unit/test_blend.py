from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_ext.config import RunConfig
from megatron_ext.data.blend import plan_blend
from megatron_ext.errors import UserError


def run_config(sources, budget_tokens=8000, seq_length=100, global_batch_size=4):
    return RunConfig(
        output=Path("out"), model={"hf_folder": Path("model")},
        data={"sources": {name: {"path": Path(name), **amount} for name, amount in sources.items()},
              "seq_length": seq_length},
        train={"budget_tokens": budget_tokens, "global_batch_size": global_batch_size},
    )


def test_budget_is_met_in_whole_iterations():
    plan = plan_blend(run_config({"a": {"fill": True}}, budget_tokens=7601), {"a": 10_000})
    assert plan.num_samples == 80  # 7,601 tokens are 19.0025 iterations of 400


@pytest.mark.parametrize(("sources", "expected"), [
    ({"a": {"fill": True}, "b": {"epochs": 1}}, [60, 20]),
    ({"a": {"fraction": 0.25}, "b": {"fraction": 0.75, "max_epochs": 4}}, [20, 60]),
    ({"a": {"tokens": 1000}, "b": {"fill": True, "max_epochs": 4}}, [10, 70]),
    ({"a": {"fill": True}, "b": {"fill": True}}, [64, 16]),
])
def test_amounts(sources, expected):
    plan = plan_blend(run_config(sources), {"a": 8000, "b": 2000})
    assert [source.num_samples for source in plan.sources] == expected


def test_amounts_that_miss_the_budget_are_refused_with_the_arithmetic():
    with pytest.raises(UserError, match=r"give 3,000 tokens \(a 1,000, b 2,000\) but the run takes 8,000"):
        plan_blend(run_config({"a": {"tokens": 1000}, "b": {"tokens": 2000}}), {"a": 8000, "b": 2000})


def test_silent_repetition_is_refused_and_stated_repetition_allowed():
    with pytest.raises(UserError, match=r"has 2,000 tokens and is asked for 8,000 \(4\.00 epochs\)"):
        plan_blend(run_config({"a": {"fill": True}}), {"a": 2000})
    plan = plan_blend(run_config({"a": {"fill": True, "max_epochs": 4}}), {"a": 2000})
    assert plan.sources[0].epochs == 4


def test_a_source_without_tokens_gives_nothing():
    plan = plan_blend(run_config({"a": {"fill": True}, "b": {"epochs": 1}}), {"a": 8000, "b": 0})
    assert [source.num_samples for source in plan.sources] == [80, 0]


@given(st.lists(st.integers(0, 50), min_size=1, max_size=4).filter(any))
def test_every_stretch_of_the_run_has_the_proportions_of_the_blend(counts):
    sources = {f"s{number}": {"tokens": count * 10} for number, count in enumerate(counts)}
    config = run_config(sources, budget_tokens=sum(counts) * 10, seq_length=10, global_batch_size=1)
    plan = plan_blend(config, dict.fromkeys(sources, 500))
    assert [source.num_samples for source in plan.sources] == counts
    total = sum(counts)
    for position in range(total + 1):
        seen = plan.samples_seen(position)
        for number, count in enumerate(counts):
            assert abs(seen[f"s{number}"] - position * count / total) <= len(counts)
    for number, count in enumerate(counts):
        assert sorted(plan.index_in_source[plan.order == number]) == list(range(count))


def test_exactly_one_amount():
    with pytest.raises(ValueError, match="exactly one of"):
        run_config({"a": {"tokens": 5, "fill": True}})
    with pytest.raises(ValueError, match="exactly one of"):
        run_config({"a": {}})
