"""The three engines, run on the same tiny random Qwen2: vLLM, vLLM's own server, transformers."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from megatron_ext.data.rewriting.engines.interface import Sampling
from megatron_ext.data.rewriting.engines.open import open_engine
from megatron_ext.data.rewriting.engines.settings import OpenaiSettings, VllmSettings
from megatron_ext.data.rewriting.environment import find_vllm_python
from megatron_ext.data.rewriting.rewrite import rewrite_corpus
from tests.unit import engine_contract
from tests.unit.test_rewriting import TEXTS, make_selection, settings_for
from tests.unit.tiny_chat_model import make_tiny_qwen2

ROOT = Path(__file__).parents[2]
PYTHON = find_vllm_python()
ENGINES = ["transformers", "vllm", "openai"]
START_SECONDS = 300
pytestmark = [pytest.mark.slow, pytest.mark.skipif(PYTHON is None, reason="vLLM is not installed (make vllm)")]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_tiny_qwen2(tmp_path_factory.mktemp("qwen2"))


class Server:
    """vLLM's own server; it starts while other things are done."""

    def __init__(self, model, log):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.address, self.log = f"http://127.0.0.1:{port}", log
        command = [str(PYTHON), "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), "--dtype", "float32",
                   "--served-model-name", "tiny", "--enforce-eager", "--no-enable-chunked-prefill",
                   "--host", "127.0.0.1", "--port", str(port)]
        with open(log, "w") as stream:
            self.process = subprocess.Popen(command, env={**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1"}, stdout=stream,
                                            stderr=stream)

    def url(self):
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end and self.process.poll() is None:
            try:
                urllib.request.urlopen(f"{self.address}/health", timeout=5).close()
                return f"{self.address}/v1"
            except OSError:
                time.sleep(0.3)
        raise AssertionError(self.log.read_text()[-3000:])


@pytest.fixture(scope="module")
def server(model, tmp_path_factory):
    server = Server(model, tmp_path_factory.mktemp("server") / "log")
    yield server
    server.process.terminate()
    server.process.wait(60)


@pytest.fixture(scope="module")
def answers(model, server):
    """Engine -> scenario -> request -> completion."""
    command = [str(PYTHON), "-m", "tests.unit.engine_contract", "vllm", str(model)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=START_SECONDS)
    assert done.returncode == 0, done.stderr[-3000:]
    return {"vllm": json.loads(done.stdout.splitlines()[-1]),
            **{name: engine_contract.scenarios(engine_contract.open_with(name, place))
               for name, place in {"transformers": str(model), "openai": server.url()}.items()}}


def test_greedy_answers_agree_token_for_token(answers):
    assert answers["vllm"]["greedy"] == answers["transformers"]["greedy"] == answers["openai"]["greedy"]
    assert sum(one["num_tokens"] for one in answers["vllm"]["greedy"].values()) > 50


@pytest.mark.parametrize("engine", ENGINES)
def test_a_request_gives_the_same_answer_in_any_company(answers, engine):
    assert answers[engine]["sampled"] == answers[engine]["sampled again, in pairs"]
    assert answers[engine]["sampled"] != answers[engine]["greedy"]


@pytest.mark.parametrize("engine", ENGINES)
def test_seeds_and_bounds_are_those_of_the_request(answers, engine):
    assert len({one["text"] for one in answers[engine]["other seeds"].values()}) > 1
    for scenario in ("greedy", "sampled"):
        for request in engine_contract.REQUESTS:
            completion = answers[engine][scenario][request.key]
            at_bound = completion["num_tokens"] == request.max_new_tokens
            assert at_bound if completion["finish_reason"] == "length" else not at_bound


def test_answers_are_held_to_a_schema_by_the_engines_that_can(answers, server):
    openai = open_engine("openai", None, Sampling(temperature=1.0, top_p=1.0), VllmSettings(),
                         OpenaiSettings(base_url=server.url()), schema=engine_contract.SCHEMA)
    for held in (answers["vllm"]["held to a schema"], engine_contract.answers(openai, engine_contract.OTHER_SEEDS)):
        assert {json.loads(one["text"]) for one in held.values()} <= {"fiel", "infiel"}
        assert {one["finish_reason"] for one in held.values()} == {"stop"}


def test_the_stage_gives_the_same_files_whatever_the_engine(model, server, tmp_path):
    selection = make_selection(tmp_path / "selection", TEXTS)
    common = {"chunk_tokens": 45, "sampling": {"temperature": 0}, "max_new_tokens_ratio": 0.5, "check_workers": 1,
              "min_survived_fraction": 0}
    tables = {}
    for engine in ENGINES:
        settings = settings_for(selection, model, engine=engine, openai={"base_url": server.url()}, **common)
        if engine == "vllm":  # the program itself finds vLLM's environment
            config = tmp_path / "config.json"
            config.write_text(settings.model_dump_json())
            command = [sys.executable, "-m", "tools.rewrite_corpus", "--output", str(tmp_path / engine), "--config",
                       str(config)]
            subprocess.run(command, cwd=ROOT, check=True, timeout=START_SECONDS)
        else:
            rewrite_corpus(settings, tmp_path / engine)
        tables[engine] = pq.read_table(tmp_path / engine / "chunks" / "part-00000.parquet")
    assert tables["transformers"].num_rows == 4 * 6  # nothing is asked twice at temperature 0
    assert tables["vllm"].schema == tables["openai"].schema == tables["transformers"].schema
    assert tables["vllm"].to_pylist() == tables["transformers"].to_pylist() == tables["openai"].to_pylist()
    for name in ("summary.json", "documents/part-00000.parquet"):
        assert len({(tmp_path / engine / name).read_bytes() for engine in ENGINES}) == 1
