"""Evaluating a model on PoETa V2, and on suites of the harness' own tasks beside it: one load of the model, all tasks,
results and examples as an artifact."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from evaluation.poeta import npm, sources
from evaluation.poeta.answer_cache import answer_cache, answer_key, argument_places, device, engine
from evaluation.poeta.devices import check_name, check_presence
from evaluation.poeta.gold import GOLD, gold_line, mean_gold, score_gold, summarise_gold
from evaluation.poeta.prepared import PreparedTask, prepare
from evaluation.poeta.suites import check_suites, evaluate_suites, suite_scores
from evaluation.poeta.table import OFFICIAL_MAX_GEN_TOKS, Profile, expand_names, task_spec
from evaluation.suites.settings import SuiteName, SuiteSettings
from megatron_ext.artifacts import Artifact, is_finished, reference, write_json, write_text
from megatron_ext.errors import UserError
from megatron_ext.identity import LAYOUT, PLACE, WATCHING
from megatron_ext.settings import Place
from megatron_ext.settings_file import shorten
from megatron_ext.stage import StageSettings, make_artifact

if TYPE_CHECKING:
    from lm_eval.api.model import LM

    from evaluation.poeta.journal import JournalingLM

_GOLD_BACKENDS = ("hf", "vllm")
JOURNAL = "answers.jsonl"
_JOURNAL_KEY = "answers.key"
RESULTS, EXAMPLES = "results.json", "examples.jsonl"


class PoetaSettings(StageSettings):
    """Evaluation on PoETa V2."""

    model: Annotated[Place, PLACE]
    """Folder of a Hugging Face model; for backends that serve models, the model's name there."""
    suites: dict[SuiteName, SuiteSettings] = Field(default_factory=dict)
    """Name -> tasks of lm-evaluation-harness that are evaluated besides, with `hf`, exactly as `lm_eval --model hf`
    does: prompts, special tokens, limits of length and metrics are the harness' own."""
    tasks: tuple[str, ...] = ("all",)
    """Official names of tasks; `all`: the 44; empty: suites alone."""
    profile: Profile = "official"
    """official: prompts, scores, limits and quirks of the official harness; clean: no example that is the evaluated
    question, chance levels computed from the data, no undefined score, whole test sets. Never compared with each other.
    """
    limit: int | None = Field(default=None, ge=1)
    """Examples a task at most, the first of the profile's order; none: all that the profile asks for."""
    data: Annotated[Path | None, PLACE] = None
    """Folder of raw data that is looked at first; none: the environment variable POETA_DATA."""
    allow_download: Annotated[bool, WATCHING] = True
    """Whether raw data may be fetched from its public sources."""
    allow_sample_data: Annotated[bool, WATCHING] = False
    """Whether invented messages may stand in for tweetsentbr where it cannot be had; the results say so."""
    backend: str = "hf"
    """`hf`, `vllm`, or a model type of lm-evaluation-harness: local-completions for any OpenAI-compatible server."""
    model_args: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of the backend."""
    batch_size: Annotated[int, LAYOUT] = Field(default=32, ge=1)
    """Prompts that are answered together. 32 of 2,048 tokens need about 32 GiB with Llama-2 7B, 3 GiB with a 135M model
    in float32."""
    max_gen_toks: int = Field(default=OFFICIAL_MAX_GEN_TOKS, ge=1)
    """Longest answer, tokens. Answers end at a line feed; a label or letter needs fewer than ten."""
    scoring: tuple[Literal["generate", "gold"], ...] = ("generate",)
    """generate: answers, and NPM of them; gold, besides: likelihoods of the right answer and of all options, in which
    the differences of small models show first, with `hf` or `vllm`. Which measures make sense for a task is a column
    of the task table (`likelihood_measures`)."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision of the weights with `hf` and `vllm`: auto (as saved), float32, bfloat16, float16."""
    device: Annotated[str | None, LAYOUT] = None
    """Device with `hf`; none: the GPU if there is one."""
    reuse_answers: Annotated[bool, WATCHING] = True
    """Whether batches that this model has answered before, in whatever evaluation, are taken from the cache."""

    @field_validator("tasks")
    @classmethod
    def _tasks_are_known(cls, tasks: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        names = expand_names(tasks)
        if not names and not info.data.get("suites"):
            raise ValueError("is empty: name tasks, or `all`")
        return tuple(names)

    @field_validator("backend")
    @classmethod
    def _backend_is_known(cls, backend: str) -> str:
        if backend not in ("hf", "vllm"):
            _find_backend(backend)
        return backend

    @field_validator("backend")
    @classmethod
    def _backend_takes_suites(cls, backend: str, info: ValidationInfo) -> str:
        if info.data.get("suites") and backend != "hf":
            raise ValueError("suites are evaluated by the harness' own Hugging Face model; write backend=hf, or leave "
                             "the suites out")
        return backend

    @field_validator("device")
    @classmethod
    def _device_has_a_name(cls, device: str | None) -> str | None:
        if device is not None:
            check_name(device)
        return device

    @field_validator("scoring")
    @classmethod
    def _scoring_is_whole(cls, scoring: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        if "generate" not in scoring:
            raise ValueError("lacks generate, which NPM follows from; write [generate] or [generate, gold]")
        backend = info.data.get("backend", "hf")
        if "gold" in scoring and backend not in _GOLD_BACKENDS:
            raise ValueError(f"gold needs the likelihoods of given answers, which backend {backend!r} does not give "
                             f"here; write backend={' or backend='.join(_GOLD_BACKENDS)}, or [generate]")
        return tuple(one for one in ("generate", "gold") if one in scoring)

    @property
    def unused_sections(self) -> tuple[str, ...]:
        """What decides nothing as it always was: evaluations from before it was a setting keep their names."""
        return (*(() if "gold" in self.scoring else ("scoring",)), *(() if self.suites else ("suites",)))


def evaluate_model(settings: PoetaSettings, output: Path) -> Artifact:
    """Evaluate and write an artifact of kind "evaluation": `results.json`, `examples.jsonl`, with gold `gold.jsonl`,
    with suites `suites.json` and `suite_examples.jsonl`.

    Raises UserError when the model, raw data or a suite's task is missing.
    """
    check_model(settings)
    check_suites(settings.suites)
    names = list(settings.tasks)
    found = sources.find_raw_data([task_spec(name) for name in names], settings.data,
                                  allow_download=settings.allow_download, allow_sample=settings.allow_sample_data)
    model = Path(settings.model)
    inputs = {"model": model} if model.is_dir() else {}
    inputs |= dict(argument_places(settings.model_args))
    inputs |= {f"suites.{name}.include_path": suite.include_path for name, suite in settings.suites.items()
               if suite.include_path is not None}
    more: dict[str, Any] = {"raw_data": {name: piece.sha256 for name, piece in found.items()}}
    if not model.is_dir():
        more["model"] = settings.model
    return make_artifact(output, kind="evaluation", settings=settings, inputs=inputs, more=more,
                         make=lambda folder: _make(settings, names, found, folder))


def check_model(settings: PoetaSettings) -> None:
    """Raise UserError where the backend needs a model folder and there is none."""
    if settings.backend in ("hf", "vllm") and not (Path(settings.model) / "config.json").exists():
        raise UserError(f"model {settings.model} is not a folder of a Hugging Face model (no config.json there); "
                        "tools.fetch_model makes one of a hub name")


def _make(settings: PoetaSettings, names: list[str], found: Mapping[str, sources.Found],
          folder: Path) -> dict[str, Any]:
    if not (folder / RESULTS).exists():
        if settings.device is not None and settings.backend == "hf":
            check_presence(settings.device)
        runs = [prepare(name, settings.profile, found, settings.limit) for name in names]
        lm = _journaling_model(settings, _journal(settings, folder))
        examples, num_truncated = _answer(settings, runs, lm) if runs else ({}, {})
        gold = score_gold(runs, lm.score_options) if "gold" in settings.scoring else {}
        _write_rows(folder / EXAMPLES, examples, npm.write_example)
        if gold:
            _write_rows(folder / GOLD, gold, gold_line)
        if settings.suites:
            evaluate_suites(settings.suites, lm, settings.model_args, folder)
        write_json(folder / RESULTS, _summarise(settings, runs, examples, num_truncated, gold))
    for name in (JOURNAL, _JOURNAL_KEY):
        (folder / name).unlink(missing_ok=True)
    results = json.loads((folder / RESULTS).read_text())
    return {"npm": results["npm"]["all"], "tasks": len(names), "data": results["data"],
            "examples": sum(task["num_examples"] for task in results["tasks"].values()),
            **({"likelihood": results["likelihood"]} if "likelihood" in results else {}),
            **({"suites": suite_scores(folder)} if settings.suites else {}),
            "deviations": results["deviations"], "changes": _changes_of(Path(settings.model)),
            "engine": engine(settings)}


def _journal(settings: PoetaSettings, folder: Path) -> Path:
    """The journal of an interrupted evaluation, empty if other versions have written it."""
    journal, note, key = folder / JOURNAL, folder / _JOURNAL_KEY, answer_key(settings)
    if journal.exists() and not (note.exists() and note.read_text() == key):
        journal.unlink()
    write_text(note, key)
    return journal


def _changes_of(model: Path) -> list[dict[str, Any]]:
    """Settings that were changed while the model was trained, as its export has noted."""
    return Artifact.open(model).counts.get("changes", []) if is_finished(model) else []


def _journaling_model(settings: PoetaSettings, journal: Path) -> JournalingLM:
    """The model, which is loaded when an answer is asked for that is not on disk."""
    os.environ.setdefault("TQDM_DISABLE", "1")  # bars of the libraries; ours are plain lines
    from evaluation.poeta.journal import JournalingLM

    return JournalingLM(lambda: _load_model(settings), journal, settings.batch_size, answer_cache(settings))


def _answer(settings: PoetaSettings, runs: list[PreparedTask],
            lm: JournalingLM) -> tuple[dict[str, list[dict[str, Any]]], dict[str, int | None]]:
    """Task -> rows of `examples.jsonl`, and task -> number of truncated prompts (None: the backend does not tell)."""
    from lm_eval import evaluator

    from evaluation.poeta.harness import HarnessTask

    tasks = {
        run.name: HarnessTask({"task": run.name, "metadata": {"max_gen_toks": settings.max_gen_toks}}, run)
        for run in runs
    }
    num_truncated = {run.name: lm.count_truncated([request.prompt for request in run.requests]) for run in runs}
    evaluated = evaluator.evaluate(lm=lm, task_dict={"tasks": tasks, "groups": {}}, bootstrap_iters=0)
    return {run.name: _example_rows(run, evaluated["samples"][run.name]) for run in runs}, num_truncated


def _load_model(settings: PoetaSettings) -> LM:
    if settings.backend == "hf":
        from evaluation.poeta.hf_model import PoetaHFLM

        return PoetaHFLM(settings.model, dtype=settings.dtype, device=device(settings),
                         batch_size=settings.batch_size, **settings.model_args)
    if settings.backend == "vllm":
        from evaluation.poeta.vllm_model import PoetaVLLM

        return PoetaVLLM(settings.model, **{"dtype": settings.dtype, **settings.model_args})
    model_class = _find_backend(settings.backend)
    place = {"pretrained" if Path(settings.model).is_dir() else "model": settings.model}
    if settings.backend == "local-completions":  # the prompt goes as text unless a tokenizer is named
        place |= {"tokenizer_backend": None, "tokenized_requests": False}
    return model_class.create_from_arg_obj(place | settings.model_args, {"batch_size": settings.batch_size})


def _find_backend(name: str) -> Any:
    """A model class of lm-evaluation-harness. Raises UserError for an unknown name."""
    from lm_eval.api.registry import get_model

    try:
        return get_model(name)
    except (KeyError, ValueError) as error:
        raise UserError(f"backend {name!r} is unknown: {shorten(str(error))}") from None


def _example_rows(run: PreparedTask, samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    rows = []
    for sample in samples:
        request = run.requests[sample["doc_id"]]
        rows.append({
            "task": run.name,
            "doc_id": request.doc_id,
            "source_id": request.document.id,
            "prompt_sha256": request.prompt_sha256,
            "output": sample["filtered_resps"][0],
            "target": request.document.target,
            "metrics": {name: sample[name] for name in sample["metrics"]},
        })
    return rows


def _write_rows(path: Path, rows: Mapping[str, list[dict[str, Any]]], line: Callable[[dict[str, Any]], str]) -> None:
    write_text(path, "".join(line(row) for task_rows in rows.values() for row in task_rows))


def _summarise(settings: PoetaSettings, runs: list[PreparedTask], examples: Mapping[str, list[dict[str, Any]]],
               num_truncated: Mapping[str, int | None], gold: Mapping[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """`results.json`."""
    tasks = {run.name: _summarise_task(run, examples[run.name], num_truncated[run.name]) for run in runs}
    for run in runs if gold else ():
        tasks[run.name]["likelihood"] = summarise_gold(run, gold[run.name])
    return {
        **({"likelihood": mean_gold(tasks)} if gold else {}),
        "profile": settings.profile,
        "data": sources.least_official(run.data for run in runs) if runs else "official",
        "deviations": _deviations(settings, runs),
        "model": reference(settings.model) if Path(settings.model).is_dir() else {"name": settings.model},
        "backend": settings.backend,
        "tasks": tasks,
        "npm": npm.mean_npm({name: task["npm"] for name, task in tasks.items()}, settings.profile),
        "task_set": [run.name for run in runs],
    }


def _summarise_task(run: PreparedTask, rows: list[dict[str, Any]], num_truncated: int | None) -> dict[str, Any]:
    spec, per_example = run.task.spec, [row["metrics"] for row in rows]
    metrics = run.task.aggregate(per_example)
    score = metrics.get(spec.metric, math.nan)
    return {
        "metric": spec.metric,
        "score": score,
        "random_score": spec.random_score,
        "max_score": spec.max_score,
        "npm": spec.normalise(score),
        "translated": spec.translated,
        "num_examples": len(rows),
        "num_whole_examples": run.num_whole,
        "num_truncated_prompts": num_truncated,
        "invalid_rate": sum(values["invalid"] for values in per_example) / len(per_example),
        "data": run.data,
        "metrics": metrics,
    }


def _deviations(settings: PoetaSettings, runs: list[PreparedTask]) -> list[str]:
    """In what the run differs from its profile, in words."""
    deviations = []
    if any(len(run.requests) < run.num_whole for run in runs):
        whole = "the official limits" if settings.profile == "official" else "the whole test sets"
        deviations.append(f"at most {settings.limit} examples a task, fewer than {whole}")
    if settings.max_gen_toks != OFFICIAL_MAX_GEN_TOKS:
        deviations.append(f"answers of at most {settings.max_gen_toks} tokens instead of {OFFICIAL_MAX_GEN_TOKS}")
    return deviations
