"""Proof of the platform on a machine with GPUs, and its figures, on one page; under ten minutes on H100s.

    make gpu-check                                # all GPUs of this machine; the page is work/gpu_check/page.md
    python -m benchmarks.gpu_check --size tiny --model FOLDER --layers local     # every part, on a CPU, saying nothing

The parts: parity of the layers that train; losses of Transformer Engine's layers beside the local ones, of packed
documents beside masked ones, of fp8 beside bfloat16; a resumed run; saved weights; speed and memory against
transformers; rewriting where vLLM is set up (`make vllm VLLM=cuda`). A part that fails does not keep the others from
running; the exit code is 1 then.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks import gpu_lab
from benchmarks.gpu_lab import SIZES, CheckFailed, Lab, describe_gpus, num_gpus, run_program
from benchmarks.measuring import versions_of
from megatron_ext.data.model_folder import EMBEDDED_MODEL, load_tokenizer

ROOT = Path(__file__).parents[1]
_VLLM = ROOT / ".venv-vllm" / "bin" / "python"
_CLOSE_NATS, _CLOSE_FP8_NATS = 0.02, 0.1
"""Losses of runs that differ in rounding alone are within so much in every iteration."""
_CLOSE_PATHS = 0.3
"""So near are the weights of two layouts, as a share of the way that training has moved them."""


def main() -> int:
    """Run every part, write the page and print it."""
    arguments = _parse()
    shutil.rmtree(arguments.work, ignore_errors=True)
    arguments.work.mkdir(parents=True)
    lab = Lab(arguments.work, SIZES[arguments.size], arguments.layers, arguments.model)
    page = ["# What a machine with GPUs has shown", "", describe_gpus(), "", versions_of(
        "torch", "megatron-core", "transformer-engine", "transformers") + f", {lab.num_processes} processes", ""]
    failed = []
    for title, part in PARTS.items():
        lines, passed = _run_part(title, part, lab)
        page += lines
        failed += [] if passed else [title]
    page.append(f"Failed: {', '.join(failed)}" if failed else "All parts passed.")
    (arguments.work / "page.md").write_text("\n".join(page) + "\n", encoding="utf-8")
    print("\n".join(page))
    return 1 if failed else 0


def _run_part(title: str, part: Callable[[Lab], list[str]], lab: Lab) -> tuple[list[str], bool]:
    print(f"{title} …", file=sys.stderr, flush=True)
    started = time.monotonic()
    try:
        lines, passed = part(lab), True
    except CheckFailed as error:
        lines, passed = ["**FAILED**", "", "```", str(error), "```"], False
    return [f"## {title} ({time.monotonic() - started:.0f} s)", "", *lines, ""], passed


def parity(lab: Lab) -> list[str]:
    """Logits of the layers that train, in float32 and with bfloat16's kernels; in a pipeline on two GPUs."""
    pp = min(2, lab.num_processes)
    verdicts = []
    for dtype in ("float32", "bfloat16"):
        told = run_program("tools.check_parity", [
            "--output", str(lab.work / f"parity-{dtype}"), f"model={lab.model}", f"dtype={dtype}",
            f"layer_implementation={lab.layers}", f"positions={lab.size.parity_positions}",
            f"parallel.pipeline_model_parallel_size={pp}"], num_processes=pp)
        verdicts += [f"- {line}" for line in told.splitlines() if line.startswith("parity")]
    return verdicts


def losses(lab: Lab) -> list[str]:
    """Whole runs that differ in the kernels alone."""
    documents = {"document_mask": True}
    columns = {
        lab.layers: lab.train("run"),
        "local": lab.train("local", model={"layer_implementation": "local"}),
        f"{lab.layers}, documents apart": lab.train("documents", data=documents),
        "local, documents apart": lab.train("documents-local", data=documents, model={"layer_implementation": "local"}),
    }
    limits = {"local": (lab.layers, _CLOSE_NATS), "local, documents apart": (
        f"{lab.layers}, documents apart", _CLOSE_NATS)}
    if gpu_lab.has_fp8() and lab.layers == "transformer_engine":
        columns["fp8"] = lab.train("fp8", model={"fp8": True})
        limits["fp8"] = (lab.layers, _CLOSE_FP8_NATS)
    table = ["| iteration | " + " | ".join(columns) + " |", "|---|" + "---|" * len(columns)]
    for rows in zip(*columns.values(), strict=True):
        table.append(f"| {rows[0]['iteration']} | " + " | ".join(f"{row['loss']:.4f}" for row in rows) + " |")
    for name, (other, limit) in limits.items():
        apart = _largest_difference(columns[name], columns[other])
        table += ["", f"{name} and {other}: at most {apart:.4f} nats apart (limit {limit})."]
        if not apart < limit:
            raise CheckFailed("\n".join(table))
    return table


def resume(lab: Lab) -> list[str]:
    """A run that was stopped after an iteration and started again, beside one that was not."""
    undisturbed = lab.train("undisturbed" if num_gpus() else "run", deterministic=True)  # on a CPU every run is
    lab.train("resumed", deterministic=True, train={"exit_duration_minutes": 1e-9})
    resumed = lab.train("resumed", deterministic=True)
    if [row["loss"] for row in resumed] == [row["loss"] for row in undisturbed]:
        return ["Losses of the resumed run are equal to the bit."]
    apart = _largest_difference(resumed, undisturbed)
    told = f"Losses of the resumed run are at most {apart:.1e} nats apart from the undisturbed one's"
    if not apart < _CLOSE_NATS:
        raise CheckFailed(told)
    return [f"{told}: near, not equal (sums on a GPU are taken in any order)."]


def saved_weights(lab: Lab) -> list[str]:
    """What a checkpoint of all processes holds: the optimizer's weights rounded, near those of one process."""
    together = lab.last_checkpoint("run")
    differing, total = gpu_lab.count_not_the_optimizers(together)
    told = [f"Of {total:,} saved weights {differing:,} are not the optimizer's, rounded."]
    if differing:
        raise CheckFailed(told[0])
    if lab.num_processes == 1:
        return told
    lab.train("alone", num_processes=1)
    share = gpu_lab.distance(together, lab.last_checkpoint("alone"), lab.model)
    told.append(f"{lab.num_processes} processes and one end {100 * share:.1f} % of the way apart that training moved "
                f"the weights (limit {100 * _CLOSE_PATHS:.0f} %).")
    if not share < _CLOSE_PATHS:
        raise CheckFailed("\n".join(told))
    return told


def speed(lab: Lab) -> list[str]:
    """Tokens/s, TFLOP/s, MFU and memory of one device, against transformers; and the memory that was estimated."""
    lines = []
    for shape in lab.size.shapes:
        lines += [*gpu_lab.speed_of(lab, shape), ""]
    return lines


def rewriting(lab: Lab) -> list[str]:
    """Output tokens/s of the rewriting stage, and of vLLM alone on the same prompts."""
    if not _VLLM.exists():
        return ["Not run: vLLM is not set up (make vllm VLLM=cuda)."]
    if not load_tokenizer(lab.model).chat_template:
        return [f"Not run: {lab.model} has no chat template; --model names an instruct model."]
    told = run_program("benchmarks.rewrite", ["--model", str(lab.model), "--documents", str(
        lab.size.rewritten_documents), "--repetitions", "1"], python=str(_VLLM))
    return ["```", *[line for line in told.splitlines() if "stage / bare" in line], "```"]


PARTS = {"Parity": parity, "Losses side by side": losses, "Resume": resume, "Saved weights": saved_weights,
         "Speed and memory": speed, "Rewriting": rewriting}


def _largest_difference(one: list[dict], other: list[dict]) -> float:
    return max(abs(a["loss"] - b["loss"]) for a, b in zip(one, other, strict=True))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("work/gpu_check"), help="emptied first")
    parser.add_argument("--size", choices=SIZES, default="full")
    parser.add_argument("--layers", choices=("local", "transformer_engine"), default="transformer_engine")
    parser.add_argument("--model", default=EMBEDDED_MODEL, help="folder of a Llama-like model with its tokenizer")
    arguments = parser.parse_args()
    if arguments.size == "full" and not num_gpus():
        parser.error("no GPU is here (nvidia-smi); --size tiny runs every part on a CPU")
    return arguments


if __name__ == "__main__":
    sys.exit(main())
