"""Suites: tasks of the harness beside PoETa V2, answered as the harness' own command line answers them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval")
from lm_eval.models.huggingface import HFLM

from evaluation.poeta import run
from evaluation.poeta.hf_model import PoetaHFLM
from evaluation.suites.evaluate import SUITE_EXAMPLES, SUITES, evaluate_suite, load_tasks
from evaluation.suites.settings import SuiteSettings
from megatron_ext.errors import UserError
from megatron_ext.identity import with_roles
from megatron_ext.settings import validate
from tests.suite_tasks import write_suite_tasks
from tests.tiny_model import write_tiny_model

CHECKOUT = Path(__file__).parents[2]
TASKS = ["cores", "somas", "prosa", "contas"]
BATCH = 3


@pytest.fixture(autouse=True)
def no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("POETA_DATA", raising=False)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_suite_tasks(tmp_path_factory.mktemp("suites") / "tasks")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that begins every text with BOS, and whose context is shorter than some prompts with examples."""
    folder = write_tiny_model(tmp_path_factory.mktemp("model") / "tiny", context_tokens=160)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    single, pair = ([{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
                    [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}])
    tokenizer["post_processor"] = {"type": "TemplateProcessing", "single": single, "pair": pair,
                                   "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    return folder


def settings(model: Path, **values: Any) -> run.PoetaSettings:
    return run.PoetaSettings(**{"model": str(model), "tasks": [], "device": "cpu", "batch_size": BATCH,
                                "allow_download": False, "allow_sample_data": True, **values})


def suite(folder: Path, **values: Any) -> dict[str, Any]:
    return {"tasks": TASKS, "include_path": str(folder), "limit": 7, "num_fewshot": 2, **values}


def rows_of(folder: Path) -> dict[tuple[str, int], dict[str, Any]]:
    rows = map(json.loads, (folder / SUITE_EXAMPLES).read_text().splitlines())
    return {(row["task"], row["doc_id"]): row for row in rows}


def command_line(model: Path, tasks: Path, output: Path) -> dict[tuple[str, int], dict[str, Any]]:
    """What `lm_eval --log_samples` writes of each item."""
    subprocess.run([
        sys.executable, "-m", "lm_eval", "--model", "hf", "--model_args", f"pretrained={model}",
        "--include_path", str(tasks), "--tasks", ",".join(TASKS), "--limit", "7", "--num_fewshot", "2",
        "--device", "cpu", "--batch_size", str(BATCH), "--log_samples", "--output_path", str(output),
    ], cwd=CHECKOUT, env={**os.environ, "HF_HUB_OFFLINE": "1"}, check=True, capture_output=True)
    found = {}
    for path in output.rglob("samples_*.jsonl"):
        task = path.name.removeprefix("samples_").rsplit("_", 1)[0]
        found |= {(task, row["doc_id"]): row for row in map(json.loads, path.read_text().splitlines())}
    return found


@pytest.mark.slow
def test_every_item_is_that_of_the_harness_own_command_line(model: Path, tasks: Path, tmp_path: Path) -> None:
    ours = run.evaluate_model(settings(model, suites={"mine": suite(tasks)}), tmp_path / "ours").path
    rows, theirs = rows_of(ours), command_line(model, tasks, tmp_path / "theirs")
    assert len(rows) == 7 * len(TASKS)
    assert rows.keys() == theirs.keys()
    for key, row in rows.items():
        other = theirs[key]
        assert (row["doc_sha256"], row["filter"]) == (other["doc_hash"], other["filter"])
        assert is_equal(row["target"], other["target"])
        assert is_equal(row["answers"], other["filtered_resps"])
        assert all(is_equal(value, other[metric]) for metric, value in row["metrics"].items())
    [results] = (tmp_path / "theirs").rglob("results_*.json")
    told = json.loads((ours / SUITES).read_text())["mine"]["tasks"]
    for task, scores in json.loads(results.read_text())["results"].items():
        for metric, value in told[task]["scores"].items():
            assert value == pytest.approx(scores[metric], abs=1e-4)


def is_equal(mine: Any, theirs: Any) -> bool:
    """Whether values are equal within rounding; the command line writes some numbers as texts."""
    if isinstance(mine, list):
        return len(mine) == len(theirs) and all(map(is_equal, mine, theirs))
    if isinstance(mine, float):
        return mine == pytest.approx(float(theirs), abs=1e-4)
    return str(mine) == str(theirs)


def test_what_the_files_say(model: Path, tasks: Path, tmp_path: Path) -> None:
    artifact = run.evaluate_model(settings(model, suites={
        "mine": suite(tasks), "norm": suite(tasks, tasks=["cores"], limit=4, metric="acc_norm")}), tmp_path / "scores")
    told = json.loads((artifact.path / SUITES).read_text())
    mine = told["mine"]["tasks"]
    assert told["mine"]["task_set"] == TASKS
    assert {name: (one["metric"], one["aggregation"], one["higher_is_better"]) for name, one in mine.items()} == {
        "cores": ("acc", "mean", True), "somas": ("exact_match", "mean", True), "contas": ("acc", "mean", True),
        "prosa": ("bits_per_byte", "bits_per_byte", False)}
    assert [mine[task]["chance"] for task in TASKS] == [0.25, None, None, None]
    assert [one["num_items"] for one in mine.values()] == [7] * 4
    assert mine["cores"]["num_fewshot"] == 2
    assert (told["norm"]["tasks"]["cores"]["metric"], told["norm"]["tasks"]["cores"]["num_items"]) == ("acc_norm", 4)
    assert artifact.counts["suites"]["mine"]["cores"] == mine["cores"]["score"]
    assert artifact.counts["npm"] is None


def test_one_load_of_the_model_for_poeta_and_suites(tasks: Path, tmp_path: Path,
                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    loads = []
    create = HFLM._create_model
    monkeypatch.setattr(HFLM, "_create_model", lambda self, *args, **kwargs: (loads.append(type(self)),
                                                                             create(self, *args, **kwargs))[1])
    artifact = run.evaluate_model(settings(
        write_tiny_model(tmp_path / "model"), tasks=["tweetsentbr_greedy"], limit=3, max_gen_toks=4,
        suites={"mine": suite(tasks, limit=2)}), tmp_path / "scores")
    assert loads == [PoetaHFLM]
    assert sorted(artifact.manifest["files"]) == ["examples.jsonl", "results.json", SUITE_EXAMPLES, SUITES]


def test_a_killed_process_goes_on_to_the_same_files(model: Path, tasks: Path, tmp_path: Path) -> None:
    values = suite(tasks, tasks=["cores", "somas"], limit=5)
    child = subprocess.run([sys.executable, "-c", f"""
import os, signal
from pathlib import Path
from evaluation.poeta import journal
from evaluation.poeta.run import PoetaSettings, evaluate_model
ask, number = journal.JournalingHarnessLM._ask_model, 0
def die_after_five(self, batch):
    global number
    number += 1
    if number == 6:
        os.kill(os.getpid(), signal.SIGKILL)
    return ask(self, batch)
journal.JournalingHarnessLM._ask_model = die_after_five
evaluate_model(PoetaSettings(model={str(model)!r}, tasks=[], device="cpu", batch_size={BATCH}, reuse_answers=False,
                             suites={{"mine": {values!r}}}), Path({str(tmp_path / "killed")!r}))
"""], cwd=CHECKOUT, capture_output=True)
    assert child.returncode == -signal.SIGKILL, child.stderr.decode()
    assert len((tmp_path / "killed.partial" / run.JOURNAL).read_text().splitlines()) == 5 * BATCH
    asked = {"suites": {"mine": values}, "reuse_answers": False}
    resumed = run.evaluate_model(settings(model, **asked), tmp_path / "killed")
    undisturbed = run.evaluate_model(settings(model, **asked), tmp_path / "undisturbed")
    for name in (SUITES, SUITE_EXAMPLES):
        assert (resumed.path / name).read_bytes() == (undisturbed.path / name).read_bytes()


def test_answers_are_reused_by_later_evaluations(model: Path, tasks: Path, tmp_path: Path,
                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    first = run.evaluate_model(settings(model, suites={"mine": suite(tasks, tasks=["cores", "contas"])}),
                               tmp_path / "first")
    monkeypatch.setattr(run, "_load_model", lambda settings: pytest.fail("the model was loaded"))
    again = run.evaluate_model(settings(model, suites={"other": suite(tasks, tasks=["contas"])}), tmp_path / "again")
    assert {key: row["answers"] for key, row in rows_of(again.path).items()} == {
        key: row["answers"] for key, row in rows_of(first.path).items() if key[0] == "contas"}


def test_a_task_that_is_asked_several_times_has_as_many_answers(model: Path, tasks: Path, tmp_path: Path) -> None:
    values = suite(tasks, tasks=["somas"], limit=2)
    config = (tasks / "somas.yaml").read_text()
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "vezes.yaml").write_text(config.replace("task: somas", "task: vezes") + "repeats: 3\n")
    lm_rows, _ = evaluate_suite("mine", SuiteSettings(**values | {"tasks": ["vezes"], "include_path": str(mine)}),
                                Numbering())
    assert [row["answers"] for row in lm_rows] == [["0"], ["3"]]


class Numbering(HFLM):
    """Answers each request with its number."""

    def __init__(self) -> None:
        self._rank, self._world_size = 0, 1

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
        return [str(number) for number, _ in enumerate(requests)]


def problems(model: Path, **suites: Any) -> str:
    with pytest.raises(UserError) as error:
        run.evaluate_model(settings(model, suites=suites), Path("nowhere"))
    return str(error.value)


@pytest.mark.slow  # all that ships with the harness is read
def test_names_of_the_harness(model: Path, tasks: Path) -> None:
    told = problems(model, mine=suite(tasks, tasks=["core", "somas", "hellaswag", "ai2_arc"]),
                    english={"tasks": ["mmlu", "helaswag"]})
    mine, english = told.split("; suites.")
    assert mine.startswith("suites.mine.tasks = core: is no task, group or tag of lm-evaluation-harness")
    assert "(contas, cores, prosa, somas, tudo_meu)" in mine
    assert english.startswith("english.tasks = helaswag: is no task") and english.endswith("did you mean 'hellaswag'?")


def test_bad_names(model: Path, tasks: Path, tmp_path: Path) -> None:
    assert "no such folder" in problems(model, mine=suite(tmp_path / "not there"))
    (tmp_path / "empty").mkdir()
    assert "no YAML file in it is a task" in problems(model, mine={"include_path": str(tmp_path / "empty")})
    assert "somas is asked for twice" in problems(model, mine=suite(tasks, tasks=["tudo_meu", "somas"]))
    assert "task somas has no such metric (exact_match)" in problems(model, mine=suite(tasks, metric="acc"))
    both = problems(model, mine=suite(tmp_path / "not there"), other=suite(tmp_path / "nor this"))
    assert "suites.mine.include_path" in both and "suites.other.include_path" in both


def test_a_name_of_poeta(model: Path, tasks: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a.yaml").write_text((tasks / "cores.yaml").read_text().replace("task: cores",
                                                                                       "task: faquad"))
    told = problems(model, mine={"include_path": str(tmp_path / "mine")})
    assert told == ("suites.mine.tasks = faquad: a task of PoETa V2 is named faquad, too; give the suite's own another "
                    "name")


@pytest.mark.parametrize(("values", "told"), [
    ({"tasks": ["a"], "limit": 0}, "suites.mine.limit = 0: Input should be greater than or equal to 1"),
    ({"tasks": ["a"], "num_fewshot": -1}, "suites.mine.num_fewshot = -1"),
    ({"tasks": ["a", "a"]}, "suites.mine.tasks = ['a', 'a']: a is there twice; remove one"),
    ({}, "names no tasks; write tasks, or include_path"),
    ({"task": ["a"]}, "did you mean 'tasks'?"),
])
def test_bad_settings(values: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError) as error:
        validate(run.PoetaSettings, {"model": "m", "suites": {"mine": values}}, "evaluation")
    assert told in str(error.value)


def test_suites_need_the_harness_own_model() -> None:
    with pytest.raises(UserError, match="write backend=hf, or leave the suites out"):
        validate(run.PoetaSettings, {"model": "m", "backend": "vllm", "suites": {"mine": {"tasks": ["a"]}}}, "it")


def test_data_that_cannot_be_had_is_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    (tmp_path / "far.yaml").write_text("task: far\ndataset_path: nobody/has-this\ntest_split: test\n"
                                       "output_type: generate_until\ndoc_to_text: a\ndoc_to_target: b\n")
    with pytest.raises(UserError, match="tasks = far: its data or code cannot be loaded") as error:
        load_tasks("mine", SuiteSettings(include_path=tmp_path))
    assert "\n" not in str(error.value)
    assert "HF_HOME" in str(error.value)


def test_without_suites_nothing_is_asked_for_that_was_not(model: Path) -> None:
    assert "suites" not in with_roles(settings(model, tasks=["all"]))
    assert "suites" in with_roles(settings(model, suites={"mine": {"tasks": ["hellaswag"]}}))
