"""Likelihoods of options: this project against lm-evaluation-harness' own HFLM, on the same requests, in turns.

    OMP_NUM_THREADS=1 python -m benchmarks.evaluate_options --data poeta_data --model smollm2/ --limit 6 \
        --tasks tweetsentbr_greedy wsc285_pt_greedy pt_hate_speech_greedy faquad

Both have the model loaded. The harness reads prompt and option anew for every option, but answers options of one token
from one reading; one request a batch, which a CPU reads fastest and which needs no padding.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from evaluation.poeta import sources, task_spec
from evaluation.poeta.gold import questions_of
from evaluation.poeta.likelihood import Question
from evaluation.poeta.prepared import prepare
from tests.tiny_model import write_tiny_model


def main() -> None:
    arguments = _parse_arguments()
    with tempfile.TemporaryDirectory() as work:
        os.environ["XDG_CACHE_HOME"] = f"{work}/cache"
        asked = {name: one for task in arguments.tasks for name, one in _questions(task, arguments).items()}
        texts = [question.prompt[-400:] for questions in asked.values() for question in questions]
        model = arguments.model or write_tiny_model(Path(work) / "tiny", 16_384, texts, num_heads=1)
        ours, harness = _contestants(model, arguments)
        table = []
        for line in _table(asked, ours, harness, arguments):
            print(line, flush=True)
            table.append(f"{line}\n")
    if arguments.output:
        arguments.output.write_text("".join(table), encoding="utf-8")


def _table(asked: Mapping[str, Sequence[Question]], ours: Contestant, harness: Contestant,
           arguments: argparse.Namespace) -> Iterator[str]:
    name = arguments.model.name if arguments.model else "random 2-layer Llama"
    yield (f"Model: {name}, float32, {arguments.rounds} rounds in turns, medians, "
           f"{platform.processor() or platform.machine()}")
    yield ""
    columns = ["task/form", "items", "options", "harness, CPU s", "this project, CPU s", "faster", "largest difference"]
    yield f"| {' | '.join(columns)} |"
    yield "|---" * len(columns) + "|"
    for task, questions in asked.items():
        yield _line(task, questions, ours, harness, arguments.rounds)


def _questions(task: str, arguments: argparse.Namespace) -> dict[str, list[Question]]:
    """Name of task and form -> what is asked."""
    found = sources.find_raw_data([task_spec(task)], arguments.data, allow_download=False)
    asked: dict[str, list[Question]] = {}
    for _, _, question in questions_of(prepare(task, "official", found, arguments.limit)):
        asked.setdefault(question.task, []).append(question)
    return asked


Contestant = Callable[[Sequence[Question]], list[float]]
"""Gives the nats of every option of every question."""


def _contestants(model: Path, arguments: argparse.Namespace) -> tuple[Contestant, Contestant]:
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    from evaluation.poeta.hf_model import PoetaHFLM

    ours = PoetaHFLM(str(model), device="cpu", dtype="float32", batch_size=arguments.batch_size)
    theirs = HFLM(str(model), device="cpu", dtype="float32", batch_size=1, add_bos_token=False)

    def harness(questions: Sequence[Question]) -> list[float]:
        requests = [Instance("loglikelihood", {}, (question.prompt, option), 0)
                    for question in questions for option in question.options]
        return [-value for value, _ in theirs.loglikelihood(requests, disable_tqdm=True)]

    return lambda questions: [nats for one in ours.score_options(questions) for nats in one.nats], harness


def _line(name: str, questions: Sequence[Question], ours: Contestant, harness: Contestant, rounds: int) -> str:
    seconds: dict[Contestant, list[float]] = {harness: [], ours: []}
    nats = {}
    for _ in range(rounds):
        for contestant, taken in seconds.items():
            start = time.process_time()
            nats[contestant] = contestant(questions)
            taken.append(time.process_time() - start)
    theirs, mine = (statistics.median(taken) for taken in seconds.values())
    difference = max(abs(a - b) / b for a, b in zip(nats[ours], nats[harness], strict=True))
    return (f"| {name} | {len(questions)} | {sum(len(one.options) for one in questions) / len(questions):.1f} "
            f"| {theirs:.1f} | {mine:.1f} | {theirs / mine:.1f}x | {difference:.0e} |")


def _parse_arguments() -> Any:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of raw data")
    parser.add_argument("--tasks", nargs="+", default=["tweetsentbr_greedy"], help="official names")
    parser.add_argument("--model", type=Path, help="Hugging Face folder (default: a tiny random model)")
    parser.add_argument("--limit", type=int, default=8, help="items a task")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=32, help="of this project")
    parser.add_argument("--output", type=Path, help="Markdown file to write")
    return parser.parse_args()


if __name__ == "__main__":
    main()
