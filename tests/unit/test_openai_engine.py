"""The openai engine against a server that is busy, away, refuses, or talks nonsense; real answers:
test_engine_contract.py.
"""

import time
from email.utils import formatdate

import pytest

from megatron_ext.data.rewriting.engines.interface import Request, Sampling
from megatron_ext.data.rewriting.engines.open import open_engine
from megatron_ext.data.rewriting.engines.settings import OpenaiSettings
from megatron_ext.data.rewriting.engines.settings import VllmSettings as NoVllm
from megatron_ext.errors import UserError
from tests.unit.misbehaving_endpoint import (
    Endpoint,
    an_error,
    finished_by,
    of_another_model,
    saying,
    without_choices,
    without_usage,
)

UNDECODABLE = ["html", "half json", "null", "list", "nothing", "truncated", without_choices, an_error]


def engine_for(endpoint, template_arguments=None, **settings):
    settings = OpenaiSettings(base_url=endpoint if isinstance(endpoint, str) else endpoint.url, **settings)
    return open_engine("openai", None, Sampling(temperature=0.5, top_p=0.8), NoVllm(), settings, template_arguments)


def ask(endpoint, num_requests=1, template_arguments=None, **settings):
    requests = [[Request(str(seed), "Reescreva.", seed, 40)] for seed in range(num_requests)][::-1]
    engine = engine_for(endpoint, template_arguments, **settings)
    return {request.key: one for request, one in engine.answer(lambda: requests.pop() if requests else [])}


def test_every_request_is_answered_with_its_own_settings():
    endpoint = Endpoint()
    answers = ask(endpoint, 5)
    assert {key: one.text for key, one in answers.items()} == {str(seed): f"texto {seed}" for seed in range(5)}
    assert (answers["0"].num_prompt_tokens, answers["0"].num_tokens) == (7, 2)  # without the token that ends it
    body = min(endpoint.bodies, key=lambda one: one["seed"])
    assert body == {"model": "tiny", "messages": [{"role": "user", "content": "Reescreva."}], "seed": 0,
                    "temperature": 0.5, "top_p": 0.8, "max_tokens": 40}


def test_further_fields_and_arguments_of_the_chat_template_are_sent():
    endpoint = Endpoint()
    ask(endpoint, template_arguments={"enable_thinking": False}, extra_body={"min_p": 0.05})
    assert endpoint.bodies[0]["chat_template_kwargs"] == {"enable_thinking": False}
    assert endpoint.bodies[0]["min_p"] == 0.05


def test_no_more_requests_than_agreed_are_under_way():
    endpoint = Endpoint(delay=0.02)
    assert len(ask(endpoint, 12, concurrency=3)) == 12
    assert endpoint.num_most == 3


def test_a_busy_server_is_asked_again():
    endpoint = Endpoint(faults=[429, 429, 503])
    assert ask(endpoint)["0"].text == "texto 0"
    assert len(endpoint.bodies) == 4


@pytest.mark.parametrize("fault", [*UNDECODABLE, "reset", 500, 408])
def test_what_passes_by_itself_is_asked_again(fault):
    endpoint = Endpoint(faults=[fault])
    assert ask(endpoint)["0"].text == "texto 0"
    assert len(endpoint.bodies) == 2


@pytest.mark.parametrize("fault", [*UNDECODABLE, "reset", 500])
def test_what_does_not_pass_is_recorded_and_the_others_go_on(fault):
    endpoint = Endpoint(faults=[fault, fault])
    answers = ask(endpoint, 3, max_retries=1, concurrency=1)
    assert answers["0"].failed and "tried 2 times" in answers["0"].problem
    assert (answers["0"].text, answers["0"].finish_reason) == ("", "error")
    assert [answers[key].text for key in "12"] == ["texto 1", "texto 2"]


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_refused_request_is_sent_once_and_told_truly(status):
    endpoint = Endpoint(faults=[status])
    answers = ask(endpoint, 2, concurrency=1)
    assert f"status {status}, tried once: " in answers["0"].problem and "não agora" in answers["0"].problem
    assert answers["1"].text == "texto 1" and len(endpoint.bodies) == 2


@pytest.mark.parametrize("status, message", [
    (401, "environment variable OPENAI_API_KEY"), (403, "OPENAI_API_KEY"), (404, "no model 'tiny'")])
def test_what_all_requests_would_meet_ends_the_run(status, message):
    with pytest.raises(UserError, match=message):
        ask(Endpoint(faults=[status] * 3), max_retries=0, model="tiny")


def test_an_endpoint_that_is_away_or_serves_several_models():
    with pytest.raises(UserError, match="cannot be reached"):
        ask("http://127.0.0.1:9/v1", max_retries=0)
    with pytest.raises(UserError, match="a, b"):
        ask(Endpoint(models=("a", "b")))


@pytest.mark.parametrize("seconds, as_date", [(2, False), (200, False), (900, True)])
def test_the_time_that_a_server_asks_for_is_kept_to(seconds, as_date, monkeypatch):
    header = formatdate(time.time() + seconds, usegmt=True) if as_date else str(seconds)
    engine, waited = engine_for(Endpoint(faults=[f"Retry-After {header}"])), []
    monkeypatch.setattr(engine._stopped, "wait", lambda asked: waited.append(asked))
    requests = [[Request("0", "Reescreva.", 0, 40)]]
    ((_, completion),) = engine.answer(lambda: requests.pop() if requests else [])
    assert completion.text == "texto 0"
    assert waited == [pytest.approx(seconds, abs=60 if as_date else 0.1)]


@pytest.mark.parametrize("reason, expected", [(None, "missing"), ("content_filter", "content_filter"),
                                              ("length", "length"), ("stop", "stop")])
def test_the_true_finish_reason_is_kept(reason, expected):
    assert ask(Endpoint(faults=[finished_by(reason)]))["0"].finish_reason == expected


def test_answers_without_usage_or_content_are_answers():
    answer = ask(Endpoint(faults=[without_usage]))["0"]
    assert (answer.text, answer.num_prompt_tokens, answer.num_tokens, answer.failed) == ("texto 0", None, None, False)
    assert ask(Endpoint(faults=[saying(lambda text: None)]))["0"].text == ""


def test_an_answer_of_another_model_ends_the_run():
    with pytest.raises(UserError, match=r"'tiny' and answers with 'some-other-model'.*answering_model"):
        ask(Endpoint(faults=[None, of_another_model]), 3, concurrency=1)
    assert ask(Endpoint(faults=[of_another_model]), answering_model="some-other-model")["0"].text == "texto 0"
    dated = Endpoint(faults=[lambda answer: answer | {"model": "tiny-2026-08-06"}])
    assert ask(dated)["0"].text == "texto 0"


def test_an_answer_that_does_not_come_in_time_is_recorded_and_the_others_go_on():
    endpoint = Endpoint(answer=lambda body: time.sleep(3 * (body["seed"] == 1)) or "texto")
    answers = ask(endpoint, 3, max_retries=0, timeout_seconds=1.5)
    assert answers["1"].failed and "no answer within 1.5 s" in answers["1"].problem
    assert [answers[key].text for key in ("0", "2")] == ["texto"] * 2
