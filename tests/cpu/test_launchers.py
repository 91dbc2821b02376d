"""What is left of a stage of several processes when its launcher is killed: nothing."""

import os
import subprocess
import sys
import time

import psutil
import pytest

from tests.cpu.launch import ROOT
from tests.tiny_model import write_tiny_model


@pytest.mark.parametrize("seconds", [0.5, 5.0], ids=["at the start", "later"])
@pytest.mark.parametrize("program", ["tools.check_parity", "megatron_ext.validate"])
def test_workers_end_with_a_killed_launcher(program, seconds, tmp_path):
    model = write_tiny_model(tmp_path / "model")
    more = [] if program == "tools.check_parity" else [f"sources={{a: {tmp_path}}}"]
    launcher = subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", program,
         "--output", str(tmp_path / "out"), f"model={model}", "parallel.pipeline_model_parallel_size=2", *more],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    workers = []
    while launcher.poll() is None and len(workers) < 2:
        workers = [child for child in psutil.Process(launcher.pid).children(recursive=True)
                   if program in child.cmdline() and str(tmp_path / "out") in child.cmdline()]
        time.sleep(0.01)
    time.sleep(seconds)
    launcher.kill()
    launcher.wait()
    _, alive = psutil.wait_procs(workers, timeout=30)
    for one in alive:
        one.kill()
    assert len(workers) == 2
    assert [one.pid for one in alive] == []
