"""Parity of one model under many layouts: how far megatron-core's logits are from those of transformers.

    python -m benchmarks.parity --model work/models/smollm2 --output benchmarks/parity.md

Every layout is a run of tools.check_parity under torchrun, in float32 and once in bfloat16: all logits at every
position of the same Portuguese text. Layouts of more stages than layers, or of sizes that do not divide the heads, are
left out.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from megatron_ext.artifacts import Artifact, reference
from megatron_ext.config import ParallelConfig
from megatron_ext.model.hf_config import layout_problems, read_architecture

TENSOR_SIZES, PIPELINES = (1, 2, 3, 4, 8), ((1, None), (2, None), (2, 3), (3, None), (3, 2))


def main() -> None:
    arguments = _parse_arguments()
    verdicts = []
    for parallel, dtype in _cases(arguments.model, arguments.max_processes):
        verdicts.append(_verdict(arguments.model, parallel, dtype, arguments.positions))
        print(json.dumps(verdicts[-1]), file=sys.stderr, flush=True)
    table = _table(arguments.model, verdicts)
    print(table)
    if arguments.output:
        arguments.output.write_text(table, encoding="utf-8")


def _cases(model: Path, max_processes: int) -> Iterator[tuple[ParallelConfig, str]]:
    architecture = read_architecture(model)
    for tp in TENSOR_SIZES:
        for pp, virtual in PIPELINES:
            parallel = ParallelConfig(tensor_model_parallel_size=tp, pipeline_model_parallel_size=pp,
                                      virtual_pipeline_model_parallel_size=virtual)
            if tp * pp <= max_processes and not layout_problems(architecture, parallel):
                yield parallel, "float32"
    yield ParallelConfig(), "bfloat16"


def _verdict(model: Path, parallel: ParallelConfig, dtype: str, num_positions: int) -> dict[str, Any]:
    num_processes = parallel.tensor_model_parallel_size * parallel.pipeline_model_parallel_size
    sizes = [f"parallel.{name}={value}" for name, value in parallel.model_dump(exclude_defaults=True).items()]
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "parity"
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node",
                   str(num_processes), "-m", "tools.check_parity", "--output", str(output), f"model={model}",
                   f"dtype={dtype}", f"positions={num_positions}", *sizes]
        subprocess.run(command, check=True, env={"OMP_NUM_THREADS": "1", **os.environ}, stdout=subprocess.DEVNULL)
        return Artifact.open(output, kind="parity").counts


def _table(model: Path, verdicts: list[dict[str, Any]]) -> str:
    columns = ["layout", "type", "positions", "max \\|Δlogit\\|", "KL, nats", "top-1 agreement", "verdict"]
    architecture = read_architecture(model)
    lines = [f"# Parity of {model.resolve().name} under its layouts", "",
             f"{architecture.num_layers} layers, {architecture.num_attention_heads} query heads, "
             f"{architecture.num_query_groups} key/value heads, {architecture.vocab_size:,} tokens; sha256 of the "
             f"folder {reference(model)['content_hash'][:12]}. `python -m benchmarks.parity --help` says what is "
             "measured.", "",
             f"| {' | '.join(columns)} |", f"|---|---|{'---:|' * 4}---|"]
    for verdict in verdicts:
        cells = [verdict["setting"], verdict["dtype"], str(verdict["num_positions"]),
                 f"{verdict['max_abs_difference']:.1e}", f"{verdict['kl_nats']:.1e}",
                 f"{100 * verdict['top1_agreement']:.2f} %", "pass" if verdict["passed"] else "FAIL"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="Hugging Face folder")
    parser.add_argument("--positions", type=int, default=512, help="positions of the text")
    parser.add_argument("--max-processes", type=int, default=9, help="leave out layouts of more")
    parser.add_argument("--output", type=Path, help="Markdown file for the table")
    return parser.parse_args()


if __name__ == "__main__":
    main()
