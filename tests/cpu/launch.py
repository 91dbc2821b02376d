"""Run a function under torchrun with gloo on several processes of this machine.

    output = run_distributed("tests.cpu.cases_weights:round_trips", nproc=4, folder=str(tmp_path))

The function is called on every process with the keyword arguments (JSON-able); what it prints comes back. A launch
costs seconds: put several checks into one.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

from megatron_ext.processes import die_with_parent

ROOT = Path(__file__).parents[2]


def run_distributed(target: str, nproc: int, timeout_seconds: float = 300, python: str = sys.executable,
                    **arguments: object) -> str:
    """Call `module:function` on `nproc` processes; returns their output, or fails with it when one of them fails."""
    command = [python, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(nproc),
               "-m", "tests.cpu.launch", target, json.dumps(arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True,
                            timeout=timeout_seconds, check=False)
    assert result.returncode == 0, f"{target} failed:\n{result.stdout}\n{result.stderr}"
    return result.stdout


def main() -> None:
    """One process: import the function and call it."""
    die_with_parent()  # a launch that ran out of time must leave nothing behind
    target, arguments = sys.argv[1:]
    module, function = target.split(":")
    getattr(importlib.import_module(module), function)(**json.loads(arguments))


if __name__ == "__main__":
    main()
