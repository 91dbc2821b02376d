"""The settings of the engines that have any."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from megatron_ext.identity import WATCHING
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
    max_num_waiting: Annotated[int, WATCHING] = Field(1024, ge=1)
    """Requests that the engine holds, in work or waiting: enough to keep its batch full. Decides no byte."""
    arguments: dict[str, Any] = Field(default_factory=dict)
    """Any other argument of vLLM's engine by its name, e.g. {gpu_memory_utilization: 0.95, max_num_seqs: 512}."""


class OpenaiSettings(Settings):
    """An endpoint with OpenAI's chat completions, e.g. of `vllm serve`."""

    base_url: Annotated[str, WATCHING] = "http://localhost:8000/v1"
    """Where it is. Decides no byte."""
    model: str | None = None
    """Name of the model there; none: the only one that it serves, which is then recorded."""
    answering_model: str | None = None
    """Name that its answers bear, where the endpoint has another one for it; an answer of any other ends the run."""
    extra_body: dict[str, Any] = Field(default_factory=dict)
    """Further fields of every request, e.g. {min_p: 0.05}."""
    api_key_variable: Annotated[str, WATCHING] = "OPENAI_API_KEY"
    """Environment variable that holds the key; an endpoint of one's own needs none. Decides no byte."""
    concurrency: Annotated[int, WATCHING] = Field(64, ge=1)
    """Requests under way at a time. Decides no byte."""
    max_retries: Annotated[int, WATCHING] = Field(12, ge=0)
    """How often a request is sent again, after the time that the server asks for (else up to 8 s), when it is busy,
    fails, is away, or answers what is no chat completion. Decides no byte."""
    timeout_seconds: Annotated[float, WATCHING] = Field(600, gt=0)
    """For one answer. Decides no byte."""
