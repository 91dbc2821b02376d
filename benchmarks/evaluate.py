"""Evaluating one task: this project against the official protocol, one prompt at a time, on the same model and CPU.

    OMP_NUM_THREADS=1 python -m benchmarks.evaluate --data poeta_data --output benchmarks/evaluate.md
    OMP_NUM_THREADS=1 python -m benchmarks.evaluate --data poeta_data --model smollm2/ --limit 40

Both do everything, from the raw data to the score: load the model, render the prompts, generate, score. The official
protocol is lm-evaluation-harness' own HFLM with one prompt a call, as the official harness calls a model; this project
is `evaluation.run_poeta`, first with an empty cache, then as for the next checkpoint, with the prompts on disk. Greedy
outputs are compared. Without --model: a random Llama of 2 layers, which hardly ever ends an answer by itself.
Likelihoods of options are measured by benchmarks.evaluate_options.
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluation.poeta import load_task, npm, sources, task_spec
from evaluation.poeta.harness import HarnessTask
from evaluation.poeta.prepared import PreparedTask, prepare
from evaluation.poeta.prompts import build_requests
from evaluation.poeta.run import PoetaSettings, evaluate_model
from tests.tiny_model import write_tiny_model


@dataclass(frozen=True)
class Turn:
    """What one contestant took and said."""

    name: str
    wall_seconds: float
    cpu_seconds: float
    outputs: list[str]


def main() -> None:
    arguments = _parse_arguments()
    with tempfile.TemporaryDirectory() as work:
        os.environ["XDG_CACHE_HOME"] = f"{work}/cache"
        model = arguments.model or _tiny_model(arguments, Path(work) / "tiny")
        evaluate_model(_settings(arguments, model, limit=1), Path(work) / "warm-up")
        turns = [
            _time("official protocol: one prompt at a time", lambda: _one_at_a_time(arguments, model)),
            _time("this project, first model", lambda: _ours(arguments, model, f"{work}/first", f"{work}/empty")),
            _time("this project, next checkpoint", lambda: _ours(arguments, model, f"{work}/next", f"{work}/empty")),
        ]
    text = _table(turns, arguments)
    print(text)
    if arguments.output:
        arguments.output.write_text(text, encoding="utf-8")


def _tiny_model(arguments: argparse.Namespace, folder: Path) -> Path:
    """Its tokenizer is learnt from the task's texts, so that prompts have as many tokens as with a real one."""
    found = sources.find_raw_data([task_spec(arguments.task)], arguments.data, allow_download=False)
    requests = prepare(arguments.task, "official", found).requests
    return write_tiny_model(folder, 16_384, [request.document.text for request in requests], num_heads=1)


def _one_at_a_time(arguments: argparse.Namespace, model: Path) -> list[str]:
    from lm_eval import evaluator
    from lm_eval.models.huggingface import HFLM

    task = load_task(arguments.task)
    found = sources.find_raw_data([task.spec], arguments.data, allow_download=False)
    requests = build_requests(task, task.load(sources.open_raw_data(task.spec, found)), arguments.limit)
    config = {"task": arguments.task, "metadata": {"max_gen_toks": arguments.max_gen_toks}}
    tasks = {arguments.task: HarnessTask(config, PreparedTask(task, requests, len(requests), "local"))}
    lm = HFLM(str(model), device="cpu", dtype=arguments.dtype, batch_size=1, add_bos_token=False)
    samples = evaluator.evaluate(lm=lm, task_dict={"tasks": tasks, "groups": {}}, bootstrap_iters=0)["samples"]
    rows = sorted(samples[arguments.task], key=lambda row: row["doc_id"])
    return [row["filtered_resps"][0] for row in rows]


def _ours(arguments: argparse.Namespace, model: Path, output: str, cache: str) -> list[str]:
    os.environ["XDG_CACHE_HOME"] = cache
    evaluate_model(_settings(arguments, model, arguments.limit), Path(output))
    return [row["output"] for row in npm.load_examples(output)]


def _settings(arguments: argparse.Namespace, model: Path, limit: int | None) -> PoetaSettings:
    return PoetaSettings(
        model=str(model), tasks=(arguments.task,), data=arguments.data, allow_download=False, limit=limit,
        batch_size=arguments.batch_size, max_gen_toks=arguments.max_gen_toks, dtype=arguments.dtype, device="cpu",
        reuse_answers=False,
    )


def _time(name: str, work: Callable[[], list[str]]) -> Turn:
    wall, cpu = time.perf_counter(), time.process_time()
    outputs = work()
    return Turn(name, time.perf_counter() - wall, time.process_time() - cpu, outputs)


def _table(turns: list[Turn], arguments: argparse.Namespace) -> str:
    official = turns[0]
    columns = ["", "wall s", "CPU s", "items/s", "faster, wall", "faster, CPU", "same outputs"]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for turn in turns:
        same = sum(ours == theirs for ours, theirs in zip(turn.outputs, official.outputs, strict=True))
        lines.append(
            f"| {turn.name} | {turn.wall_seconds:.1f} | {turn.cpu_seconds:.1f} "
            f"| {len(turn.outputs) / turn.wall_seconds:.1f} | {official.wall_seconds / turn.wall_seconds:.1f}x "
            f"| {official.cpu_seconds / turn.cpu_seconds:.1f}x | {same} of {len(turn.outputs)} |")
    model = arguments.model.name if arguments.model else "random 2-layer Llama"
    return "\n".join([
        f"`{arguments.task}`, {len(official.outputs)} items, model: {model}, {arguments.dtype}, answers of at most "
        f"{arguments.max_gen_toks} tokens, batches of {arguments.batch_size}, {_threads()} thread(s), "
        f"{platform.processor() or platform.machine()}", "", *lines, ""])


def _threads() -> int:
    import torch

    return torch.get_num_threads()


def _parse_arguments() -> Any:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of raw data")
    parser.add_argument("--task", default="pt_hate_speech_greedy", help="task with a limit of 300 items")
    parser.add_argument("--model", type=Path, help="Hugging Face folder (default: a tiny random model)")
    parser.add_argument("--limit", type=int, help="items (default: the official 300)")
    parser.add_argument("--max-gen-toks", type=int, default=128, help="longest answer, tokens, for both")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--output", type=Path, help="Markdown file to write")
    return parser.parse_args()


if __name__ == "__main__":
    main()
