"""The openai engine against a server that is busy, away, or refuses; real answers: test_engine_contract.py."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from megatron_ext.data.rewriting.engines.interface import Request, Sampling
from megatron_ext.data.rewriting.engines.open import OpenaiSettings, open_engine
from megatron_ext.data.rewriting.engines.open import VllmSettings as NoVllm
from megatron_ext.errors import UserError


class Endpoint(ThreadingHTTPServer):
    """Answers `texto <seed>`; `statuses`: what it answers first instead."""

    daemon_threads = True

    def __init__(self, statuses=(), models=("tiny",), delay=0.0):
        super().__init__(("127.0.0.1", 0), Handler)
        self.statuses, self.models, self.delay = list(statuses), models, delay
        self.bodies, self.num_now, self.num_most, self.lock = [], 0, 0, threading.Lock()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self._send(200, {"object": "list", "data": [{"id": name, "object": "model"} for name in self.server.models]})

    def do_POST(self):
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            server.bodies.append(body)
            server.num_now += 1
            server.num_most = max(server.num_most, server.num_now)
            status = server.statuses.pop(0) if server.statuses else 200
        time.sleep(server.delay)
        with server.lock:
            server.num_now -= 1
        message = {"role": "assistant", "content": f"texto {body['seed']}"}
        answer = {"id": "1", "object": "chat.completion", "created": 1, "model": "tiny",
                  "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
                  "usage": {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}}
        self._send(status, answer if status == 200 else {"error": {"message": "não agora", "type": "x"}})

    def _send(self, status, values):
        data = json.dumps(values).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        if status == 429:
            self.send_header("retry-after-ms", "20")
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments):
        pass


def ask(endpoint, num_requests=1, **settings):
    settings = OpenaiSettings(base_url=endpoint if isinstance(endpoint, str) else endpoint.url, **settings)
    engine = open_engine("openai", None, Sampling(temperature=0.5, top_p=0.8), NoVllm(), settings)
    requests = [[Request(str(seed), "Reescreva.", seed, 40)] for seed in range(num_requests)][::-1]
    return {request.key: one for request, one in engine.answer(lambda: requests.pop() if requests else [])}


def test_every_request_is_answered_with_its_own_settings():
    endpoint = Endpoint()
    answers = ask(endpoint, 5)
    assert {key: one.text for key, one in answers.items()} == {str(seed): f"texto {seed}" for seed in range(5)}
    assert (answers["0"].num_prompt_tokens, answers["0"].num_tokens) == (7, 2)  # without the token that ends it
    body = min(endpoint.bodies, key=lambda one: one["seed"])
    assert body == {"model": "tiny", "messages": [{"role": "user", "content": "Reescreva."}], "seed": 0,
                    "temperature": 0.5, "top_p": 0.8, "max_tokens": 40}


def test_no_more_requests_than_agreed_are_under_way():
    endpoint = Endpoint(delay=0.02)
    assert len(ask(endpoint, 12, concurrency=3)) == 12
    assert endpoint.num_most == 3


def test_a_busy_server_is_asked_again():
    endpoint = Endpoint(statuses=[429, 429, 503])
    assert ask(endpoint)["0"].text == "texto 0"
    assert len(endpoint.bodies) == 4


@pytest.mark.parametrize("status, message", [
    (401, "environment variable OPENAI_API_KEY"), (404, "no model 'tiny'"), (400, "chunk_tokens.*não agora"),
    (500, "status 500, tried 1 times")])
def test_what_a_user_can_mend_is_said(status, message):
    with pytest.raises(UserError, match=message):
        ask(Endpoint(statuses=[status] * 3), max_retries=0, model="tiny")


def test_an_endpoint_that_is_away_or_serves_several_models():
    with pytest.raises(UserError, match="cannot be reached"):
        ask("http://127.0.0.1:9/v1", max_retries=0)
    with pytest.raises(UserError, match="a, b"):
        ask(Endpoint(models=("a", "b")))
