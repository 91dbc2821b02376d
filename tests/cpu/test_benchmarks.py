"""The benchmark programs run, at a size that says nothing, so that they are there when a GPU is."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow


def run(module, *arguments):
    result = subprocess.run([sys.executable, "-m", module, *arguments], capture_output=True, text=True, timeout=300,
                            check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_training_against_a_plain_loop():
    table = run("benchmarks.train", "--shape", "tiny", "--iterations", "5", "--rounds", "1")
    assert "| megatron_ext |" in table
    assert "| transformers + AdamW |" in table
    assert "Speed against transformers, by round" in table


def test_cost_of_the_data():
    table = run("benchmarks.training_data", "--documents", "20000", "--samples", "50")
    assert "open, order of one pass, first sample" in table
    assert "| read one sample of 4,096 tokens |" in table
