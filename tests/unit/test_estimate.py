import pytest

from megatron_ext.data.rewriting import estimate
from megatron_ext.data.rewriting.engines.interface import Completion
from megatron_ext.data.rewriting.estimate import Calibration, estimate_cost, extrapolate
from megatron_ext.data.rewriting.plan import Plan, WindowPlan
from megatron_ext.errors import UserError
from tests.unit.test_rewriting import TEXTS, good_answer, make_selection, settings_for
from tests.unit.tiny_chat_model import make_tiny_chat_model


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("estimate")
    model = make_tiny_chat_model(folder / "model")
    return settings_for(make_selection(folder / "selection", TEXTS), model, chunk_tokens=45)


def test_a_run_costs_in_proportion_to_its_source_tokens(settings):
    plan = Plan([WindowPlan(0, 0, 5, 600), WindowPlan(1, 5, 9, 400)], 9, 9, None)
    calibration = Calibration(seconds=10.0, num_asked=20, num_survived=15, num_source_tokens=100,
                              num_completion_tokens=80, num_survivor_tokens=60)
    cost = extrapolate(settings, plan, calibration)
    assert cost.num_source_tokens == 4_000                       # 1,000 tokens in four styles
    assert cost.num_completion_tokens == 80 * 40 * 1.25          # a quarter is asked for once more
    assert cost.num_survivor_tokens == 60 * 40
    assert cost.completion_tokens_per_second == 8.0
    assert cost.engine_hours == pytest.approx(4_000 / 8 / 3600)
    two_gpus = settings.model_copy(update={"engine": "vllm", "vllm": settings.vllm.model_copy(
        update={"tensor_parallel_size": 2})})
    assert extrapolate(two_gpus, plan, calibration).gpu_hours == pytest.approx(2 * cost.engine_hours)


class ScriptedEngine:
    def __init__(self, text):
        self.text = text

    def answer(self, take):
        while batch := take():
            for request in batch:
                text = good_answer(request) if self.text is None else self.text
                yield request, Completion(text, 10, len(text.split()), "stop")


def test_the_sample_is_judged_as_the_run_would(settings, monkeypatch):
    monkeypatch.setattr(estimate, "open_engine", lambda *arguments: ScriptedEngine(None))
    calibration, cost = estimate_cost(settings, seconds=30)
    assert calibration.num_asked == 4 * 6 and calibration.num_survived == 3 * 6  # no qa pairs: wrong format
    assert calibration.num_source_tokens == cost.num_source_tokens == 4 * sum(len(text) for text in TEXTS.values())
    assert any("GPU-hours" in line for line in cost.lines())


def test_no_answer_is_no_estimate(settings, monkeypatch):
    monkeypatch.setattr(estimate, "open_engine", lambda *arguments: ScriptedEngine(""))
    with pytest.raises(UserError, match="no answer"):
        estimate_cost(settings)
