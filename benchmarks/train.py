"""Training speed against a plain transformers + AdamW loop on the same model, batch and machine, alternating.

    python -m benchmarks.train --shape 19m                    # a CPU
    python -m benchmarks.train --shape 1.1b --iterations 20 --layers transformer_engine   # a GPU; also 7b_layers

Both sides run as processes of their own. The trainer is measured as it is used: data from an indexed dataset, metrics
written, gradients checked. The plain loop has its batch in memory and does nothing but forward, backward, clip, update;
on a GPU it runs in bfloat16 autocast under torch.compile with fused AdamW. Prints a table in Markdown.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from megatron_ext.artifacts import produce, write_json
from megatron_ext.data.indexed import bin_path, idx_path, write_index

_LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "rms_norm_eps": 1e-5,
          "max_position_embeddings": 4096, "tie_word_embeddings": False, "vocab_size": 32000}
SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {"model": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
                       "vocab_size": 512}, "seq_length": 64, "global_batch_size": 4, "micro_batch_size": 2},
    "19m": {"model": {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 8, "num_attention_heads": 6,
                      "vocab_size": 8192}, "seq_length": 512, "global_batch_size": 4, "micro_batch_size": 2},
    "1.1b": {"model": {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22,
                       "num_attention_heads": 32, "num_key_value_heads": 4},
             "seq_length": 4096, "global_batch_size": 16, "micro_batch_size": 4},
    "7b_layers": {"model": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 8,
                            "num_attention_heads": 32},
                  "seq_length": 4096, "global_batch_size": 8, "micro_batch_size": 2},
}
_WARM_UP_ITERS = 3
_PARTS = ("data", "forward_backward", "communication", "optimizer")


def main() -> None:
    """Make the model and the data, run both sides in turn, print the table."""
    arguments = _parse()
    if arguments.peer:
        print(json.dumps(run_peer(arguments.peer, arguments.iterations)))
        return
    with tempfile.TemporaryDirectory() as folder:
        work = prepare(Path(folder), arguments.shape, arguments.iterations, arguments.layers)
        ours, theirs = [], []
        for number in range(arguments.rounds):
            ours.append(run_trainer(work, number))
            theirs.append(run_peer_apart(work, arguments.iterations))
        print("\n".join(table(arguments.shape, work, ours, theirs)))


def prepare(folder: Path, shape: str, iterations: int, layers: str = "local") -> Path:
    """A model folder with random weights, a tokenized artifact of random tokens, and the run's settings."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    values = SHAPES[shape]
    config = {**_LLAMA, **values["model"]}
    config.setdefault("num_key_value_heads", config["num_attention_heads"])
    on_gpu = torch.cuda.is_available()
    dtype = "bfloat16" if on_gpu else "float32"

    def make_model(target: Path) -> dict[str, Any]:
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config), dtype=getattr(torch, dtype))
        model.save_pretrained(target)
        return {"parameters": model.num_parameters()}

    def make_tokens(target: Path) -> dict[str, Any]:
        tokens = np.random.default_rng(0).integers(0, config["vocab_size"], iterations * values["global_batch_size"]
                                                   * values["seq_length"] + 1000, dtype=np.uint16)
        lengths = np.full(len(tokens) // 500, 500)
        counts: dict[str, Any] = {"vocab_size": config["vocab_size"], "eod_token_id": 0}
        for split, number in (("train", len(lengths)), ("valid", 0)):
            bin_path(target / split).write_bytes(tokens[:500 * number].tobytes())
            write_index(idx_path(target / split), lengths[:number], np.dtype(np.uint16))
            counts[split] = {"documents": number, "tokens": 500 * number, "bytes": 2000 * number}
        return counts

    produce(folder / "model", kind="hf_model", settings={"shape": shape}, inputs={}, make=make_model)
    produce(folder / "tokens", kind="tokenized", settings={"shape": shape}, inputs={}, make=make_tokens)
    write_json(folder / "settings.json", {
        "output": "unset",
        "model": {"hf_folder": str(folder / "model"), "dtype": dtype, "layer_implementation": layers},
        "data": {"seq_length": values["seq_length"],
                 "sources": {"random": {"path": str(folder / "tokens"), "fill": True}}},
        "train": {"budget_tokens": iterations * values["global_batch_size"] * values["seq_length"],
                  "global_batch_size": values["global_batch_size"], "micro_batch_size": values["micro_batch_size"]},
        "parallel": {"use_distributed_optimizer": False},
    })
    return folder


def run_trainer(work: Path, number: int) -> dict[str, float]:
    """The trainer as its user runs it; seconds of an iteration and its parts, medians after the warm-up."""
    settings = json.loads((work / "settings.json").read_text())
    settings["output"] = str(work / f"run{number}")
    write_json(work / "run.json", settings)
    started = time.perf_counter()
    result = subprocess.run([sys.executable, "-m", "megatron_ext.train", "--config", str(work / "run.json")],
                            capture_output=True, text=True, check=False)
    if result.returncode:
        raise SystemExit(result.stdout + result.stderr)
    rows = [json.loads(line) for line in (work / f"run{number}" / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if row["event"] == "train"][_WARM_UP_ITERS:]
    medians = {part: statistics.median(row["seconds"][part] for row in rows) for part in ("iteration", *_PARTS)}
    computing = [sum(row["seconds"][part] for part in _PARTS if part != "data") for row in rows]
    overhead = statistics.median(1 - seconds / row["seconds"]["iteration"]
                                 for seconds, row in zip(computing, rows, strict=True))
    return {**medians, "overhead": overhead, "whole_process": time.perf_counter() - started,
            "peak_memory_gib": max(row.get("peak_memory_gib", 0.0) for row in rows)}


def run_peer_apart(work: Path, iterations: int) -> dict[str, float]:
    """The plain loop in a process of its own."""
    return _in_a_process(["-m", "benchmarks.train", "--peer", str(work), "--iterations", str(iterations)])


def run_peer(work: Path, iterations: int) -> dict[str, float]:
    """The plain loop: seconds of an iteration, median after the warm-up."""
    import torch
    from transformers import AutoModelForCausalLM

    settings = json.loads((work / "settings.json").read_text())
    seq_length, train = settings["data"]["seq_length"], settings["train"]
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    model = AutoModelForCausalLM.from_pretrained(work / "model", dtype=torch.float32).to(device)
    model.train()
    forward = torch.compile(model) if on_gpu else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-5, betas=(0.9, 0.95), weight_decay=0.1,
                                  fused=on_gpu or None)
    micro_batch, num_micro_batches = train["micro_batch_size"], train["global_batch_size"] // train["micro_batch_size"]
    tokens = torch.randint(0, model.config.vocab_size, (micro_batch, seq_length + 1), device=device)
    seconds = []
    for _ in range(iterations):
        started = time.perf_counter()
        optimizer.zero_grad()
        for _ in range(num_micro_batches):
            with torch.autocast(device.type, torch.bfloat16, enabled=on_gpu):
                logits = forward(tokens[:, :-1]).logits
                loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten())
            (loss / num_micro_batches).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        loss.item()
        seconds.append(time.perf_counter() - started)
    memory = torch.cuda.max_memory_allocated() / 2**30 if on_gpu else 0.0
    return {"iteration": statistics.median(seconds[_WARM_UP_ITERS:]), "peak_memory_gib": memory}


def table(shape: str, work: Path, ours: list[dict[str, float]], theirs: list[dict[str, float]]) -> list[str]:
    """Markdown: both sides, the ratio of their speeds, and where the trainer's time goes."""
    import torch

    from megatron_ext.model.hf_config import read_architecture
    from megatron_ext.training.throughput import train_flops_per_token

    settings = json.loads((work / "settings.json").read_text())
    tokens = settings["train"]["global_batch_size"] * settings["data"]["seq_length"]
    flops = train_flops_per_token(read_architecture(work / "model"), settings["data"]["seq_length"])
    on_gpu = torch.cuda.is_available()
    machine = torch.cuda.get_device_name() if on_gpu else f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
    lines = [f"{shape}: {machine}, torch {torch.__version__}, sequences of {settings['data']['seq_length']:,}, "
             f"{tokens:,} tokens an iteration, {settings['model']['dtype']}, layers "
             f"{settings['model']['layer_implementation']}; best of {len(ours)} alternating rounds",
             "", "| | tokens/s | TFLOP/s | MFU (989) | peak memory GiB |", "|---|---|---|---|---|"]
    best = {}
    for name, results in (("megatron_ext", ours), ("transformers + AdamW", theirs)):
        fastest = min(results, key=lambda result: result["iteration"])
        best[name] = tokens / fastest["iteration"]
        tflops = best[name] * flops / 1e12
        mfu, memory = (f"{100 * tflops / 989:.1f} %", f"{fastest['peak_memory_gib']:.1f}") if on_gpu else ("", "")
        lines.append(f"| {name} | {best[name]:,.0f} | {tflops:.3f} | {mfu} | {memory} |")
    ratios = sorted(theirs[i]["iteration"] / ours[i]["iteration"] for i in range(len(ours)))
    run = min(ours, key=lambda result: result["iteration"])
    shares = {part: 100 * run[part] / run["iteration"] for part in _PARTS}
    lines += ["", f"Speed against transformers, by round: {', '.join(f'{ratio:.2f}' for ratio in ratios)}. Of the "
              f"trainer's iteration: {', '.join(f'{part} {share:.2f} %' for part, share in shares.items())}; outside "
              f"forward-backward, communication and optimizer {100 * run['overhead']:.2f} %."]
    return lines


def _in_a_process(arguments: list[str]) -> dict[str, float]:
    result = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)
    if result.returncode:
        raise SystemExit(result.stdout + result.stderr)
    return json.loads(result.stdout.splitlines()[-1])


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="19m")
    parser.add_argument("--iterations", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--layers", choices=("local", "transformer_engine"), default="local")
    parser.add_argument("--peer", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
