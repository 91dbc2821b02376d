"""Conversion of weights against a copy of the same bytes and against transformers, in one run, taking turns.

    python -m benchmarks.convert --work /scratch          > benchmarks/convert.md
    python -m benchmarks.convert --work /scratch --warm  >> benchmarks/convert.md

The model has TinyLlama 1.1B's shape and random bfloat16 weights. Contestants, each turn a process of its own:
`cp` and a flush to the disk; import_hf and export_hf, whose output is flushed and hashed as in every use, without the
proof of parity; transformers' from_pretrained and save_pretrained, and a flush. The input is dropped from the page
cache before each turn, so that it comes from the disk, unless `--warm` keeps it there. Time runs from when the
libraries are imported; the order changes from round to round. Peak memory counts the pages of mapped files as well;
"above start" is without what the imported libraries take. The best of the turns are shown; the first turn of each is
not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from importlib.metadata import version
from pathlib import Path
from typing import Any

from megatron_ext.artifacts import produce

CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 32_000, "hidden_size": 2048,
    "intermediate_size": 5632, "num_hidden_layers": 22, "num_attention_heads": 32, "num_key_value_heads": 4,
    "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "tie_word_embeddings": False, "dtype": "bfloat16",
    "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0}, "hidden_act": "silu",
    "attention_bias": False, "bos_token_id": 1, "eos_token_id": 2,
}
MODEL, CHECKPOINT = "model", "checkpoint"


def main() -> None:
    arguments = _parse_arguments()
    if arguments.turn:
        print(json.dumps(_take_turn(arguments.turn, arguments.work, arguments.warm)))
        return
    with tempfile.TemporaryDirectory(dir=arguments.work) as work:
        make_model(Path(work) / MODEL, arguments.layers)
        _run_turn("import_hf", work, True, keep=True)
        turns = [_run_turn(name, work, arguments.warm) for number in range(arguments.repetitions + 1)
                 for name in _order(number)]
        size = (Path(work) / MODEL / "model.safetensors").stat().st_size
    counted = turns[len(CONTESTANTS):]
    best = {name: min((turn for turn in counted if turn["name"] == name), key=lambda turn: turn["seconds"])
            for name in CONTESTANTS}
    print(_table(best, size, arguments))


# ---- the contestants: (work folder, output folder) -> what to time


def _copy(work: Path, output: Path) -> Callable[[], None]:
    def run() -> None:
        subprocess.run(["cp", work / MODEL / "model.safetensors", output], check=True)
        flush(output)

    return run


def _import(work: Path, output: Path) -> Callable[[], None]:
    from megatron_ext.config import ParallelConfig
    from megatron_ext.model.distributed import process_groups
    from megatron_ext.model.hf_import import ImportSettings, import_hf

    def run() -> None:
        with process_groups(ParallelConfig()):
            import_hf(ImportSettings(model=work / MODEL, parity=False), output)

    return run


def _export(work: Path, output: Path) -> Callable[[], None]:
    from megatron_ext.model.hf_export import ExportSettings, export_hf

    return lambda: export_hf(ExportSettings(checkpoint=work / CHECKPOINT, parity=False), output)


def _transformers(work: Path, output: Path) -> Callable[[], None]:
    from transformers import LlamaForCausalLM

    def run() -> None:
        model = LlamaForCausalLM.from_pretrained(work / MODEL, dtype="auto", local_files_only=True)
        model.save_pretrained(output, max_shard_size="5GB")
        for file in output.iterdir():
            flush(file)

    return run


CONTESTANTS: dict[str, Callable[[Path, Path], Callable[[], None]]] = {
    "cp": _copy, "import_hf": _import, "export_hf": _export, "transformers": _transformers,
}


def flush(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())


# ---- turns


def _order(number: int) -> list[str]:
    """Another order each round: what was written and deleted before a turn can still cost the disk."""
    return random.Random(number).sample(list(CONTESTANTS), len(CONTESTANTS))


def _run_turn(name: str, work: str, warm: bool, keep: bool = False) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.convert", "--turn", name, "--work", work, *["--warm"] * warm]
    result = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    output = Path(work) / "output"
    if keep:
        output.rename(Path(work) / CHECKPOINT)
    elif output.is_dir():
        shutil.rmtree(output)
    else:
        output.unlink()
    turn = json.loads(result.stdout.splitlines()[-1])
    print(turn, file=sys.stderr, flush=True)
    return turn


def _take_turn(name: str, work: Path, warm: bool) -> dict[str, Any]:
    with redirect_stdout(sys.stderr):
        run = CONTESTANTS[name](work, work / "output")
        os.sync()  # the turn before leaves nothing to write
        if not warm:
            _drop_from_cache(work)
        at_start = memory_mib("VmRSS")
        started = time.perf_counter()
        run()
        seconds = time.perf_counter() - started
    return {"name": name, "seconds": seconds, "peak_mib": memory_mib("VmHWM"), "start_mib": at_start}


def _drop_from_cache(work: Path) -> None:
    for file in (*(work / MODEL).iterdir(), *(work / CHECKPOINT).glob("*.distcp")):
        with open(file, "rb") as opened:
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def memory_mib(key: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    [line] = [line for line in lines if line.startswith(key + ":")]
    return int(line.split()[1]) / 1024


# ---- input and report


def make_model(folder: Path, num_layers: int) -> None:
    import torch

    from megatron_ext.model.hf_config import parse_hf_config
    from megatron_ext.model.hf_files import Piece, write_hf_weights
    from megatron_ext.model.mappings import in_model_order, megatron_shapes, weight_table

    config = CONFIG | {"num_hidden_layers": num_layers}
    architecture = parse_hf_config(config)
    table, shapes = weight_table(architecture), megatron_shapes(architecture)
    generator = torch.Generator().manual_seed(0)

    def pieces() -> Iterator[Piece]:
        for name, layer in in_model_order(table, num_layers):
            row, whole = table[name], shapes[name]
            parts = [(num_rows, *whole[1:]) for num_rows in row.hf_num_rows(whole[0], architecture)]
            yield Piece([hf_name.replace("*", str(layer)) for hf_name in row.hf_names], parts, torch.bfloat16,
                        lambda parts=parts: [torch.empty(part, dtype=torch.bfloat16).uniform_(
                            -0.02, 0.02, generator=generator) for part in parts])

    def make(target: Path) -> dict[str, Any]:
        (target / "config.json").write_text(json.dumps(config))
        write_hf_weights(target, list(pieces()), 5 * 10**9)
        return {}

    produce(folder, kind="hf_model", settings={}, inputs={}, make=make)


def _table(best: dict[str, dict[str, Any]], size: int, arguments: argparse.Namespace) -> str:
    copy_seconds = best["cp"]["seconds"]
    largest = 2 * CONFIG["vocab_size"] * CONFIG["hidden_size"] / 2**20
    columns = ["", "seconds", "MB/s", "of copy bandwidth", "peak MiB", "above start, MiB", "in largest tensors"]
    place = "in the page cache" if arguments.warm else "on the disk"
    lines = [f"# Converting {size / 1e9:.2f} GB of weights that lie {place} (TinyLlama 1.1B's shape, bfloat16)", "",
             f"{machine()}. The best of {arguments.repetitions} turns; `python -m benchmarks.convert --help` says "
             f"what is measured. The largest tensor has {largest:.0f} MiB.", "",
             f"| {' | '.join(columns)} |", f"|---|{'---:|' * (len(columns) - 1)}"]
    for name, turn in best.items():
        above = turn["peak_mib"] - turn["start_mib"]
        cells = [name, f"{turn['seconds']:.1f}", f"{size / 1e6 / turn['seconds']:.0f}",
                 f"{copy_seconds / turn['seconds']:.2f}"]
        cells += ["", "", ""] if name == "cp" else [f"{turn['peak_mib']:.0f}", f"{above:.0f}", f"{above / largest:.1f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def machine() -> str:
    cpu_info = Path("/proc/cpuinfo")
    models = [line.partition(":")[2].strip() for line in cpu_info.read_text().splitlines()
              if line.startswith("model name")] if cpu_info.is_file() else []
    versions = [f"{name} {version(name)}" for name in ("torch", "transformers", "safetensors")]
    return (f"{models[0] if models else platform.machine()}, {len(os.sched_getaffinity(0))} cores, "
            f"{platform.system()}, Python {platform.python_version()}, {', '.join(versions)}")


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="folder for temporary files: three times the model")
    parser.add_argument("--layers", type=int, default=CONFIG["num_hidden_layers"], help="fewer: a smaller model")
    parser.add_argument("--repetitions", type=int, default=3, help="turns of each contestant")
    parser.add_argument("--warm", action="store_true", help="leave the input in the page cache")
    parser.add_argument("--turn", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
