"""An exported folder loads in vLLM, and generates what transformers generates."""

import json
import os
import subprocess

import pytest

from megatron_ext.model.hf_export import write_hf_folder
from megatron_ext.model.hf_import import write_megatron_checkpoint
from megatron_ext.model.parity import parity_tokens
from tests.cpu.launch import ROOT
from tests.hf_models import make_hf_model

PYTHON = ROOT / ".venv-vllm" / "bin" / "python"
NUM_TOKENS = 24

pytestmark = [pytest.mark.slow,
              pytest.mark.skipif(not PYTHON.exists(), reason="vLLM is not set up: `make vllm` makes .venv-vllm")]


def vllm_greedy(folder, prompt, output):
    environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind",
                   "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    command = [PYTHON, ROOT / "tests" / "cpu" / "vllm_greedy.py", folder, json.dumps(prompt), str(NUM_TOKENS), output]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads(output.read_text())


def test_greedy_tokens_are_those_of_transformers(tmp_path):
    """A model with few key/value heads, in several files, generates the same tokens from a Portuguese prompt."""
    from transformers import AutoModelForCausalLM

    # vLLM's attention on a CPU wants heads of 32 channels at least
    source = make_hf_model(tmp_path / "source", hidden_size=96, num_attention_heads=3, num_key_value_heads=1,
                           head_dim=32)
    (tmp_path / "checkpoint").mkdir()
    write_megatron_checkpoint(source, tmp_path / "checkpoint")
    exported = tmp_path / "exported"
    exported.mkdir()
    write_hf_folder(tmp_path / "checkpoint", exported, max_file_bytes=100_000)
    assert len(list(exported.glob("*.safetensors"))) > 1
    prompt = parity_tokens(source, 40)
    model = AutoModelForCausalLM.from_pretrained(source)
    expected = model.generate(prompt, max_new_tokens=NUM_TOKENS, min_new_tokens=NUM_TOKENS, do_sample=False)
    tokens = vllm_greedy(exported, prompt[0].tolist(), tmp_path / "tokens.json")
    assert tokens == expected[0, prompt.shape[1]:].tolist()
