"""The evaluation stage: artifact, exact resume, the Hugging Face model, the harness' own command line tasks."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

lm_eval = pytest.importorskip("lm_eval")
import torch  # noqa: E402
from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.api.model import LM  # noqa: E402
from lm_eval.api.registry import register_model  # noqa: E402

from evaluation.poeta import (  # noqa: E402
    answer_cache,
    hf_model,
    npm,
    prepared,
    run,
    sources,
    task_names,
)
from evaluation.poeta.gold import GOLD  # noqa: E402
from evaluation.poeta.hf_model import PoetaHFLM  # noqa: E402
from evaluation.poeta.journal import append_answers, cut_into_batches, keys_of, read_answers  # noqa: E402
from evaluation.run_poeta import main  # noqa: E402
from megatron_ext.errors import UserError  # noqa: E402
from megatron_ext.settings import load_settings  # noqa: E402
from tests.tiny_model import write_tiny_model  # noqa: E402

TASK = "tweetsentbr_greedy"
CHECKOUT = Path(__file__).parents[2]
VLLM_PYTHON = CHECKOUT / ".venv-vllm" / "bin" / "python"
LABELS = (" negativa", " neutra", " positiva", " não sei")


@register_model("oracle")
class Oracle(LM):
    """Answers by the hash of the prompt and of its batch: another batch, another answer."""

    die_after: int | None = None
    minds_batch = True

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[int] = []

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        if len(self.batches) == self.die_after:
            os.kill(os.getpid(), signal.SIGKILL)
        self.batches.append(len(requests))
        batch = "".join(request.args[0] for request in requests if self.minds_batch)
        return [LABELS[hashlib.sha256((request.args[0] + batch).encode()).digest()[0] % 4] for request in requests]

    def loglikelihood(self, requests: Any) -> Any: ...
    def loglikelihood_rolling(self, requests: Any) -> Any: ...


@pytest.fixture(autouse=True)
def no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("POETA_DATA", raising=False)


@pytest.fixture
def oracle(monkeypatch: pytest.MonkeyPatch) -> Oracle:
    model = Oracle()
    monkeypatch.setattr(run, "_load_model", lambda settings: model)
    monkeypatch.setattr(run, "_find_backend", lambda name: Oracle)
    return model


def settings(**values: Any) -> run.PoetaSettings:
    defaults = {"model": "oracle", "backend": "oracle", "tasks": [TASK], "allow_sample_data": True,
                "allow_download": False, "limit": 11, "batch_size": 3}
    return run.PoetaSettings(**{**defaults, **values})


def test_results_and_examples(oracle: Oracle, tmp_path: Path) -> None:
    artifact = run.evaluate_model(settings(), tmp_path / "scores")
    results, examples = npm.load_results(artifact.path), npm.load_examples(artifact.path)
    assert artifact.kind == "evaluation"
    assert sorted(artifact.manifest["files"]) == ["examples.jsonl", "results.json"]
    assert oracle.batches == [3, 3, 3, 2]
    assert (results["profile"], results["data"], results["task_set"]) == ("official", "sample", [TASK])
    assert [row["doc_id"] for row in examples] == list(range(11))
    task = results["tasks"][TASK]
    assert task["score"] == npm.preferred_score(TASK, [row["metrics"] for row in examples])
    assert task["npm"] == npm.task_npm(TASK, task["score"]) == results["npm"]["all"] == results["npm"]["native"]
    assert results["npm"]["translated"] is None
    right = sum(row["output"] == row["target"] for row in examples)
    assert task["metrics"]["acc"] == pytest.approx(100 * right / 11)
    assert task["invalid_rate"] == pytest.approx(sum(row["output"] == " não sei" for row in examples) / 11)
    assert (task["num_examples"], task["num_whole_examples"]) == (11, 42)


def num_answers(journal: Path) -> int:
    """Answers in a journal, which also holds counts of truncated prompts."""
    return sum(isinstance(answer, str) for answer in read_answers(journal).values())


def test_deviations_are_stated(oracle: Oracle, tmp_path: Path) -> None:
    limited = run.evaluate_model(settings(max_gen_toks=8), tmp_path / "limited").counts
    assert limited["deviations"] == ["at most 11 examples a task, fewer than the official limits",
                                     "answers of at most 8 tokens instead of 2048"]
    assert run.evaluate_model(settings(limit=None), tmp_path / "whole").counts["deviations"] == []
    assert run.evaluate_model(settings(limit=1000), tmp_path / "same").counts["deviations"] == []


def test_killed_and_run_again(oracle: Oracle, tmp_path: Path) -> None:
    undisturbed = run.evaluate_model(settings(), tmp_path / "undisturbed")
    child = os.fork()
    if child == 0:
        oracle.die_after, oracle.batches = 2, []
        run.evaluate_model(settings(), tmp_path / "killed")
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert num_answers(tmp_path / "killed.partial" / run.JOURNAL) == 6
    oracle.batches = []
    resumed = run.evaluate_model(settings(), tmp_path / "killed")
    assert oracle.batches == [3, 2]
    assert resumed.content_hash == undisturbed.content_hash
    oracle.batches = []
    run.evaluate_model(settings(), tmp_path / "killed")
    assert oracle.batches == []


def test_killed_in_the_middle_of_a_line(oracle: Oracle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    undisturbed = run.evaluate_model(settings(), tmp_path / "undisturbed")

    def stop(*args: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(run, "_write_rows", stop)
        run.evaluate_model(settings(), tmp_path / "scores")
    journal = tmp_path / "scores.partial" / run.JOURNAL
    journal.write_bytes(journal.read_bytes()[:-20])  # the last answer of a batch of two is torn
    oracle.batches = []
    assert run.evaluate_model(settings(), tmp_path / "scores").content_hash == undisturbed.content_hash
    assert oracle.batches == [2]


def test_other_data_is_another_request(oracle: Oracle, tmp_path: Path) -> None:
    run.evaluate_model(settings(), tmp_path / "scores")
    name = "data/tweetsentbr/tweetsentbr.json"
    place = tmp_path / "mine" / name
    place.parent.mkdir(parents=True)
    place.write_text((sources.SAMPLE / name).read_text().replace("pão", "bolo"))
    with pytest.raises(UserError, match="raw_data"):
        run.evaluate_model(settings(data=tmp_path / "mine"), tmp_path / "scores")


def ask(task: str, number: int) -> list[Instance]:
    return [Instance("generate_until", {}, (f"{task}{i}" + "x" * (i % 5), {}), 0, (task, i, 1)) for i in range(number)]


def cut(requests: list[Instance]) -> list[list[Instance]]:
    return cut_into_batches(requests, 5, lambda one: (one.task_name, one.args[0], one.doc_id))


def test_batches_depend_on_nothing_but_the_requests_of_their_task() -> None:
    requests = ask("a", 12)
    batches = cut(requests)
    assert [len(batch) for batch in batches] == [5, 5, 2]
    assert batches[0][0].args[0].endswith("xxxx")
    assert batches == cut(requests[::-1]) == cut([*requests, *ask("b", 3)])[:3]
    prompts = [[request.args[0] for request in batch] for batch in batches]
    keys = [key for batch in prompts for key in keys_of(batch)]
    assert len(set(keys)) == 12
    assert keys_of(prompts[0]) != keys_of(prompts[0][:-1])


def test_appending_to_answers_cuts_off_a_torn_line(tmp_path: Path) -> None:
    append_answers(tmp_path / "kept", {("p", "b"): "um\u2028a"})
    (tmp_path / "kept").write_bytes((tmp_path / "kept").read_bytes() + b'{"prompt')
    assert read_answers(tmp_path / "kept") == {("p", "b"): "um\u2028a"}
    append_answers(tmp_path / "kept", {("q", "b"): "dois"})
    assert read_answers(tmp_path / "kept") == {("p", "b"): "um\u2028a", ("q", "b"): "dois"}


def test_answers_are_reused_by_model_prompt_and_settings(oracle: Oracle, tmp_path: Path) -> None:
    for name in ("model", "copy", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(str(name == "other"))

    def asked(output: str, **values: Any) -> int:
        oracle.batches = []
        run.evaluate_model(settings(**{"model": str(tmp_path / "model"), **values}), tmp_path / output)
        return len(oracle.batches)

    assert asked("first") == 4
    assert asked("again") == asked("copied", model=str(tmp_path / "copy")) == 0
    assert npm.load_examples(tmp_path / "again") == npm.load_examples(tmp_path / "first")
    assert asked("anew", reuse_answers=False) == asked("other model", model=str(tmp_path / "other")) == 4
    assert asked("shorter", max_gen_toks=8) == 4
    assert asked("fewer", limit=9) == 1  # two batches of three hold the same prompts as before
    assert asked("other batches", batch_size=5) == 3
    assert asked("by name", model="served") == asked("by name again", model="served") == 4


def test_answers_are_kept_by_the_content_of_folders_in_the_arguments(oracle: Oracle, tmp_path: Path,
                                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "tokenizer.json").write_text("one")
    kept = {"model": str(tmp_path / "model"), "model_args": {"tokenizer": str(tmp_path / "tokenizer")}}

    def asked(output: str, **values: Any) -> int:
        oracle.batches = []
        run.evaluate_model(settings(**kept | values), tmp_path / output)
        return len(oracle.batches)

    assert asked("first") == 4
    assert asked("again") == 0
    (tmp_path / "tokenizer" / "tokenizer.json").write_text("two")
    assert asked("changed") == 4
    with pytest.raises(UserError, match=r"inputs\.model_args\.tokenizer\.content_hash"):
        asked("first")
    for name in ("by name", "by name again"):
        assert asked(name, model_args={"tokenizer": "owner/of-the-hub"}) == 4
    monkeypatch.setattr(answer_cache, "version", lambda package: "another")
    assert asked("another version") == 4


def test_a_changed_answer_in_the_cache_is_not_believed(tmp_path: Path) -> None:
    append_answers(tmp_path / "kept", {("p", "b"): "um", ("q", "b"): "dois"})
    (tmp_path / "kept").write_text((tmp_path / "kept").read_text().replace("dois", "tres"))
    assert read_answers(tmp_path / "kept") == {("p", "b"): "um"}


def test_prompts_are_rendered_once(oracle: Oracle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run.evaluate_model(settings(), tmp_path / "first")
    with monkeypatch.context() as patch:
        patch.setattr(prepared, "build_requests", None)
        again = run.evaluate_model(settings(), tmp_path / "again")
        assert again.content_hash == first.content_hash
        with pytest.raises(TypeError):  # another profile: other prompts
            run.evaluate_model(settings(profile="clean"), tmp_path / "clean")
    [place] = (sources.cache_folder() / "prompts").iterdir()
    place.write_bytes(place.read_bytes()[:-9])  # damaged: built again
    assert run.evaluate_model(settings(), tmp_path / "mended").content_hash == first.content_hash


def test_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    for arguments, message in [
        ([f"model={tmp_path}", "allow_download=false", "allow_sample_data=true", f"tasks=[{TASK}]"], "no config.json"),
        ([f"model={tmp_path}", "tasks=[tweetsentbr]"], "did you mean 'tweetsentbr_greedy'"),
        ([f"model={model}", f"tasks=[{TASK}]", "allow_download=false"], "raw data of 1 task(s) is missing"),
        ([f"model={model}", f"tasks=[{TASK}]", "data=/does/not/exist"], "does not exist"),
        (["model=m", "backend=nothing", f"tasks=[{TASK}]", "allow_sample_data=true", "allow_download=false"],
         "backend 'nothing' is unknown"),
    ]:
        monkeypatch.setattr("sys.argv", ["run_poeta", "--output", str(tmp_path / "scores"), *arguments])
        assert main() == 2
        assert message in capsys.readouterr().err


def test_any_backend_of_the_harness(tmp_path: Path) -> None:
    counts = run.evaluate_model(settings(backend="dummy", limit=2), tmp_path / "scores").counts
    assert counts["examples"] == 2
    assert npm.load_results(tmp_path / "scores")["tasks"][TASK]["invalid_rate"] == 1


def test_any_openai_compatible_server(tmp_path: Path) -> None:
    """As a completion model: the prompt as it is, greedy, up to a line feed."""
    asked: list[dict[str, Any]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            prompts = asked[-1]["prompt"]
            choices = [{"index": i, "text": LABELS[len(prompt) % 4]} for i, prompt in enumerate(prompts)]
            body = json.dumps({"choices": choices}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    arguments = {"base_url": f"http://127.0.0.1:{server.server_port}/v1/completions"}
    artifact = run.evaluate_model(settings(model="served", backend="local-completions", model_args=arguments, limit=5,
                                           max_gen_toks=8), tmp_path / "scores")
    server.shutdown()
    server.server_close()
    prompts = {hashlib.sha256(prompt.encode()).hexdigest(): prompt for body in asked for prompt in body["prompt"]}
    assert [len(body["prompt"]) for body in asked] == [3, 2]
    for body in asked:
        assert (body["model"], body["temperature"], body["max_tokens"]) == ("served", 0, 8)
        assert "\n" in body["stop"]
    rows = npm.load_examples(artifact.path)
    assert [row["output"] for row in rows] == [LABELS[len(prompts[row["prompt_sha256"]]) % 4] for row in rows]


@pytest.mark.slow
@pytest.mark.skipif(not VLLM_PYTHON.exists(), reason="vLLM is not set up: `make vllm` makes .venv-vllm")
def test_vllm_answers_as_hf_does(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "model", context_tokens=8192)
    common = {"model": str(model), "limit": 6, "max_gen_toks": 8, "dtype": "float32", "reuse_answers": False,
              "scoring": ["generate", "gold"]}
    ours = run.evaluate_model(settings(backend="hf", device="cpu", **common), tmp_path / "hf")
    arguments = [f"{name}={json.dumps(value) if isinstance(value, list) else value}"
                 for name, value in common.items()] + [
        "backend=vllm", "model_args={enforce_eager: true, max_num_seqs: 3}", "allow_sample_data=true",
        "allow_download=false", f"tasks=[{TASK}]"]
    environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind",
                   "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    command = [VLLM_PYTHON, "-m", "evaluation.run_poeta", "--output", str(tmp_path / "vllm"), *arguments]
    result = subprocess.run(command, cwd=CHECKOUT, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    theirs = npm.load_examples(tmp_path / "vllm")
    assert [row["output"] for row in theirs] == [row["output"] for row in npm.load_examples(ours.path)]
    assert npm.load_results(tmp_path / "vllm")["npm"] == npm.load_results(ours.path)["npm"]
    for mine, its in zip(_nats(ours.path), _nats(tmp_path / "vllm"), strict=True):
        assert its == pytest.approx(mine, rel=1e-4)


def _nats(evaluation: Path) -> list[list[float]]:
    rows = map(json.loads, (evaluation / GOLD).read_text().splitlines())
    return [[option["nats"] for option in row["options"]] for row in rows]


def test_lists_on_the_command_line() -> None:
    values = load_settings(run.PoetaSettings, None, ["model=m", "tasks=[faquad, mkqa_greedy]", "limit=8"])
    assert (values.tasks, values.limit) == (("faquad", "mkqa_greedy"), 8)


def test_tasks_for_the_harness_own_command_line(oracle: Oracle, tmp_path: Path,
                                                monkeypatch: pytest.MonkeyPatch) -> None:
    from lm_eval import evaluator
    from lm_eval.tasks import TaskManager

    folder = Path(run.__file__).parent / "lm_eval_tasks"
    manager = TaskManager(include_path=folder, include_defaults=False)
    assert manager.all_subtasks == sorted(f"poeta_{name}" for name in task_names())
    monkeypatch.setenv("POETA_DATA", str(sources.SAMPLE))
    oracle.minds_batch = False
    loaded = manager.load([f"poeta_{TASK}"])
    theirs = evaluator.evaluate(lm=oracle, task_dict=loaded, limit=11, bootstrap_iters=10)
    ours = run.evaluate_model(settings(data=sources.SAMPLE), tmp_path / "scores")
    metrics = npm.load_results(ours.path)["tasks"][TASK]["metrics"]
    their_metrics = theirs["results"][f"poeta_{TASK}"]
    for name in ("acc", "f1-macro", "f1-weighted"):
        assert their_metrics[f"{name},none"] == metrics[name]
    assert their_metrics["acc_stderr,none"] == pytest.approx(metrics["acc_stderr"])


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny"))


def generate(lm: PoetaHFLM, prompts: list[str], max_gen_toks: int = 24) -> list[str]:
    arguments = {"until": ["\n"], "do_sample": False, "max_gen_toks": max_gen_toks}
    return lm.generate_until([Instance("generate_until", {}, (prompt, arguments), 0) for prompt in prompts],
                             disable_tqdm=True)


def test_hf_model_in_batches_answers_as_one_by_one(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against plain greedy steps without cache, padding or batching."""
    monkeypatch.setattr(hf_model, "SHORT_ANSWER_TOKENS", 6)
    lm = PoetaHFLM(str(tiny_model), device="cpu", batch_size=7, dtype="float32")
    lm.model.lm_head.weight.data[[0, *lm.tokenizer.encode("\n", add_special_tokens=False)]] *= 2  # often ends answers
    prompts = ["Olá", "Uma frase um pouco mais comprida:", "x" * 450, "?", *(f"Pergunta {i}:" for i in range(10))]
    num_new = []

    def plainly(prompt: str) -> str:
        ids = list(prompt_ids := lm.tokenizer.encode(prompt, add_special_tokens=False)[-300:])
        for _ in range(24):
            ids.append(int(lm.model(torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] == 0 or lm.tokenizer.decode(ids[-1]) == "\n":
                break
        num_new.append(len(ids) - len(prompt_ids))
        return lm.tokenizer.decode(ids[len(prompt_ids):], skip_special_tokens=True).split("\n")[0]

    assert generate(lm, prompts) == [plainly(prompt) for prompt in prompts]
    assert min(num_new) < 6 < max(num_new)  # both short answers and rows that go on by themselves
    assert lm.count_truncated(prompts) == 1


def test_rows_stop_at_their_own_line_feed(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = PoetaHFLM(str(tiny_model), device="cpu", batch_size=2, dtype="float32")
    line_feed = lm.tokenizer.encode("\n", add_special_tokens=False)[0]
    assert lm._token_ends_answer.nonzero().flatten().tolist() == [line_feed]
    steps = []
    plain_forward = lm.model.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        """The first row says line feed at the second step, the second one EOS at the third."""
        output = plain_forward(*args, **kwargs)
        output.logits[:, -1, [0, line_feed]] = -1e4
        steps.append(len(steps))
        if len(steps) == 2:
            output.logits[0, -1, line_feed] = 1e4
        if len(steps) == 3:
            output.logits[1, -1, 0] = 1e4
        return output

    monkeypatch.setattr(lm.model, "forward", forward)
    generate(lm, ["primeira", "segunda!"])
    assert len(steps) == 3


@pytest.mark.parametrize(("context", "kept"), [(2048 + 4, slice(-4, None)), (2048, slice(0, None)),
                                               (2048 - 4, slice(4, None))])
def test_official_truncation(tiny_model: Path, context: int, kept: slice) -> None:
    lm = PoetaHFLM(str(tiny_model), device="cpu", batch_size=1)
    lm._slice_start = 2048 - context
    tokens = lm.tokenizer.encode("0123456789", add_special_tokens=False)
    assert lm.encode_prompt("0123456789") == tokens[kept]
    if context < 2048:
        with pytest.raises(UserError, match="context of 2044 tokens is too short"):
            lm.encode_prompt("0123")


def test_hf_folder_from_end_to_end(tiny_model: Path, tmp_path: Path) -> None:
    artifact = run.evaluate_model(settings(model=str(tiny_model), backend="hf", limit=3, max_gen_toks=4, device="cpu"),
                                  tmp_path / "scores")
    results = npm.load_results(artifact.path)
    assert results["model"]["content_hash"] == artifact.manifest["request"]["inputs"]["model"]["content_hash"]
    assert results["tasks"][TASK]["num_truncated_prompts"] == 3
    assert len(json.loads((artifact.path / "examples.jsonl").read_text().splitlines()[0])["prompt_sha256"]) == 64


def start(arguments: list[str], output: Path) -> subprocess.Popen:
    """`python -m evaluation.run_poeta` in a process of its own."""
    command = [sys.executable, "-m", "evaluation.run_poeta", "--output", str(output), *arguments]
    return subprocess.Popen(command, cwd=CHECKOUT, stdout=subprocess.DEVNULL)


def test_a_killed_process_goes_on_to_the_same_files(tiny_model: Path, tmp_path: Path) -> None:
    values = {"model": str(tiny_model), "backend": "hf", "limit": 24, "batch_size": 2, "max_gen_toks": 24,
              "device": "cpu", "reuse_answers": False}
    arguments = [f"{name}={value}" for name, value in values.items()]
    arguments += ["allow_sample_data=true", "allow_download=false", f"tasks=[{TASK}]"]
    journal = tmp_path / "killed.partial" / run.JOURNAL
    process = start(arguments, tmp_path / "killed")
    while process.poll() is None and num_answers(journal) < 4:
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    answered = num_answers(journal)
    assert 4 <= answered < 24
    assert start(arguments, tmp_path / "killed").wait() == 0
    undisturbed = run.evaluate_model(settings(**values), tmp_path / "undisturbed")
    for name in (run.RESULTS, run.EXAMPLES):
        assert (tmp_path / "killed" / name).read_bytes() == (undisturbed.path / name).read_bytes()


def test_the_harness_own_command_line_gives_the_same_numbers(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "model", context_tokens=16_384)
    ours = run.evaluate_model(settings(model=str(model), backend="hf", limit=6, max_gen_toks=8, device="cpu"),
                              tmp_path / "scores")
    command = [
        sys.executable, "-m", "lm_eval", "--model", "hf", "--model_args", f"pretrained={model},add_bos_token=False",
        "--include_path", "evaluation/poeta/lm_eval_tasks", "--tasks", f"poeta_{TASK}", "--limit", "6",
        "--gen_kwargs", "max_gen_toks=8", "--device", "cpu", "--batch_size", "2", "--log_samples",
        "--output_path", str(tmp_path / "theirs"),
    ]
    environment = {**os.environ, "POETA_DATA": str(sources.SAMPLE), "HF_HUB_OFFLINE": "1"}
    subprocess.run(command, cwd=CHECKOUT, env=environment, check=True, capture_output=True)
    [results] = (tmp_path / "theirs").rglob("results_*.json")
    [samples] = (tmp_path / "theirs").rglob("samples_*.jsonl")
    theirs = json.loads(results.read_text())["results"][f"poeta_{TASK}"]
    for name, value in npm.load_results(ours.path)["tasks"][TASK]["metrics"].items():
        assert theirs[f"{name},none"] == pytest.approx(value)
    rows = sorted(map(json.loads, samples.read_text().splitlines()), key=lambda row: row["doc_id"])
    assert [row["filtered_resps"][0] for row in rows] == [row["output"] for row in npm.load_examples(ours.path)]
    assert any(row["filtered_resps"][0] for row in rows)


def test_profile_clean_in_the_harness(monkeypatch: pytest.MonkeyPatch) -> None:
    from lm_eval.tasks import TaskManager

    monkeypatch.setenv("POETA_DATA", str(sources.SAMPLE))
    folder = Path(run.__file__).parent / "lm_eval_tasks"
    manager = TaskManager(include_path=folder, include_defaults=False, metadata={"profile": "clean"})
    [task] = manager.load([f"poeta_{TASK}"])["tasks"].values()
    assert task.poeta_task.spec.profile == "clean"
