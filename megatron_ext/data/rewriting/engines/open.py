"""Opening an engine by its name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field

from megatron_ext.data.rewriting.engines.interface import Engine, EngineName, Sampling
from megatron_ext.errors import UserError
from megatron_ext.settings import Settings


class VllmSettings(Settings):
    """vLLM's offline engine."""

    tensor_parallel_size: int = Field(1, ge=1)
    """GPUs that share one copy of the model."""
    dtype: str = "auto"
    """Of weights and activations: auto, bfloat16, float16, float32."""
    quantization: str | None = None
    """E.g. fp8; none: as the weights are stored."""
    enable_prefix_caching: bool = True
    """Compute what prompts have in common once; with order=document_first, the styles of a chunk share it."""
    max_model_len: int | None = Field(None, ge=1)
    """Tokens of a prompt and its completion, at most; none: what the model can."""
    max_num_waiting: int = Field(1024, ge=1)
    """Requests that the engine holds, in work or waiting: enough to keep its batch full."""
    arguments: dict[str, Any] = Field(default_factory=dict)
    """Any other argument of vLLM's engine by its name, e.g. {gpu_memory_utilization: 0.95, max_num_seqs: 512}."""


class OpenaiSettings(Settings):
    """An endpoint with OpenAI's chat completions, e.g. of `vllm serve`."""

    base_url: str = "http://localhost:8000/v1"
    """Where it is."""
    model: str | None = None
    """Name of the model there; none: the only one that it serves."""
    api_key_variable: str = "OPENAI_API_KEY"
    """Environment variable that holds the key; an endpoint of one's own needs none."""
    concurrency: int = Field(64, ge=1)
    """Requests under way at a time."""
    max_retries: int = Field(12, ge=0)
    """How often a request is sent again, after waiting up to 8 s, when the server is busy, fails, or is away."""
    timeout_seconds: float = Field(600, gt=0)
    """For one answer."""


def open_engine(name: EngineName, model: Path | None, sampling: Sampling, vllm: VllmSettings,
                openai: OpenaiSettings) -> Engine:
    """Load the model folder into the engine of this name, or connect to the endpoint.

    Raises UserError when there is no model folder, it has no chat template, or the endpoint does not answer.
    """
    if name == "openai":
        from megatron_ext.data.rewriting.engines.openai_engine import OpenaiEngine

        return OpenaiEngine(openai, sampling)
    if model is None:
        raise UserError(f"engine = {name}: needs `model`, the folder of an instruct model (tools.fetch_model)")
    if name == "vllm":
        from megatron_ext.data.rewriting.engines.vllm_engine import VllmEngine

        return VllmEngine(model, sampling, vllm)
    from megatron_ext.data.rewriting.engines.transformers_engine import TransformersEngine

    return TransformersEngine(model, sampling)
