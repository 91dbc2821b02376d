"""Rewriting end to end against vLLM's own LLM.generate on the same prompts with the same settings, in turn.

    make vllm && .venv-vllm/bin/python -m benchmarks.rewrite --model MODEL_FOLDER --repetitions 3

One process, one engine. `bare` is LLM.generate over all prompts at once; `stage` is all of tools.rewrite_corpus but the
loading of the model: planning, chunking, prompts, journal, checks in helper processes, files. The prefix cache is
emptied before each. Retries are off, so that both write the same completions. Results: benchmarks/rewrite.md.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import pyarrow.parquet as pq

from megatron_ext.artifacts import produce
from megatron_ext.data.documents import Document, DocumentWriter
from megatron_ext.data.rewriting import rewrite
from megatron_ext.data.rewriting.engines.chat import encode_prompts
from megatron_ext.data.rewriting.engines.interface import Request, Sampling
from megatron_ext.data.rewriting.engines.vllm_engine import VllmEngine
from megatron_ext.data.rewriting.helpers import load_items, open_tools, token_counter
from megatron_ext.data.rewriting.items import Asker
from megatron_ext.data.rewriting.plan import make_plan
from megatron_ext.data.rewriting.settings import RewriteSettings
from megatron_ext.settings import load_settings

CORPUS = Path(__file__).parents[1] / "examples" / "quickstart" / "corpus"


def main() -> None:
    arguments = _arguments()
    with tempfile.TemporaryDirectory() as folder:
        settings = _settings(arguments, _selection(Path(folder) / "selection", arguments))
        engine = VllmEngine(arguments.model, settings.sampling, settings.vllm)
        rewrite.open_engine = lambda *_: engine
        requests = _requests(settings)
        print(f"{len(requests):,} prompts; seconds and output tokens/s; the first repetition warms up")
        for number in range(1 + arguments.repetitions):
            bare = _bare(engine, settings.sampling, requests)
            stage = _stage(settings, Path(folder) / f"rewrites-{number}", engine)
            ratio = (stage[1] / stage[0]) / (bare[1] / bare[0])
            print(f"{number}: bare {bare[0]:.1f} s {bare[1] / bare[0]:,.1f}/s   stage {stage[0]:.1f} s "
                  f"{stage[1] / stage[0]:,.1f}/s   stage / bare {ratio:.3f}   tokens {bare[1]:,} {stage[1]:,}",
                  flush=True)


def _bare(engine: VllmEngine, sampling: Sampling, requests: list[Request]) -> tuple[float, int]:
    """(seconds, output tokens)"""
    from vllm import SamplingParams

    engine.llm.reset_prefix_cache()
    started = time.monotonic()
    prompts = [{"prompt_token_ids": ids} for ids in encode_prompts(engine.llm.get_tokenizer(), requests)]
    params = [SamplingParams(temperature=sampling.temperature, top_p=sampling.top_p, max_tokens=one.max_new_tokens,
                             seed=one.seed if sampling.temperature else None) for one in requests]
    outputs = engine.llm.generate(prompts, params, use_tqdm=False)
    seconds = time.monotonic() - started
    return seconds, sum(len(one.outputs[0].token_ids) - (one.outputs[0].finish_reason == "stop") for one in outputs)


def _stage(settings: RewriteSettings, output: Path, engine: VllmEngine) -> tuple[float, int]:
    engine.llm.reset_prefix_cache()
    started = time.monotonic()
    rewrites = rewrite.rewrite_corpus(settings, output)
    seconds = time.monotonic() - started
    tables = [pq.read_table(file, columns=["num_completion_tokens"]) for file in (rewrites.path / "chunks").iterdir()]
    return seconds, sum(table["num_completion_tokens"].to_numpy().sum() for table in tables)


def _requests(settings: RewriteSettings) -> list[Request]:
    """Those of the stage, in its order."""
    plan, tools = make_plan(settings), open_tools(settings)
    asker = Asker(tools.prompts, settings, "benchmark")
    return [asker.request(item, 0) for window in plan.windows for item in load_items(tools, plan, window)]


def _selection(folder: Path, arguments: argparse.Namespace) -> Path:
    """The first documents of the quickstart's corpus as a selection."""
    rows = [json.loads(line) for file in sorted(CORPUS.glob("*.jsonl"))
            for line in file.read_text(encoding="utf-8").splitlines()][:arguments.documents]
    sizes = token_counter(arguments.model)([row["text"] for row in rows])

    def make(partial: Path) -> dict[str, int]:
        with DocumentWriter(partial) as writer:
            for row, size in zip(rows, sizes, strict=True):
                writer.write(Document(str(row["id"]), str(row["id"]), "original", row["text"], size))
        return {}

    produce(folder, kind="selection", settings={}, inputs={}, make=make)
    return folder


def _settings(arguments: argparse.Namespace, selection: Path) -> RewriteSettings:
    values = [f"documents={selection}", f"model={arguments.model}", f"tokenizer={arguments.model}", "engine=vllm",
              "retries=0", f"chunk_tokens={arguments.chunk_tokens}", f"sampling.temperature={arguments.temperature}",
              "sampling.top_p=1.0", f"max_new_tokens_ratio={arguments.max_new_tokens_ratio}",
              "max_failed_fraction=1", "min_survived_fraction=0"]  # any model's speed can be measured
    return load_settings(RewriteSettings, None, values)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--documents", type=int, default=200)
    parser.add_argument("--chunk-tokens", type=int, default=350)
    parser.add_argument("--max-new-tokens-ratio", type=float, default=1.0)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--repetitions", type=int, default=3)
    return parser.parse_args()


if __name__ == "__main__":
    main()
