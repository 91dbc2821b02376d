"""The settings of the engines that have any, and those of every stage that asks a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator

from megatron_ext.data.rewriting.engines.interface import EngineName, Sampling
from megatron_ext.identity import LAYOUT, PLACE, WATCHING
from megatron_ext.settings import Settings
from megatron_ext.stage import StageSettings


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


class AskingSettings(StageSettings):
    """A stage that asks an instruct model."""

    model: Annotated[Path | None, PLACE] = None
    """Folder of the instruct model that is asked (tools.fetch_model); engine openai needs none."""
    engine: EngineName = "transformers"
    """What runs the model: transformers (CPU), vllm (`make vllm`), openai (an endpoint)."""
    vllm: VllmSettings = VllmSettings()
    """Of engine vllm."""
    openai: OpenaiSettings = OpenaiSettings()
    """Of engine openai."""
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Arguments of the model's chat template, e.g. {enable_thinking: false} for Qwen3."""
    sampling: Sampling = Sampling()
    """How tokens are drawn."""
    batch_size: Annotated[int, Field(ge=1), LAYOUT] = 16
    """Requests of a batch of engine transformers, where bytes may depend on it; the other engines fill their batches
    themselves."""
    retries: int = Field(1, ge=0)
    """How often a failed answer is asked for again, with another seed; never at temperature 0, which repeats itself."""
    max_failed_fraction: Annotated[float, Field(ge=0, le=1), WATCHING] = 0.4
    """The run stops when more than this share of its requests failed (no answer, refused), counted after 20 and at the
    end. Decides no byte."""
    seed: int = Field(0, ge=0)
    """Decides what is chosen and what is drawn."""

    @model_validator(mode="after")
    def _address_is_one(self) -> AskingSettings:
        if self.engine == "openai" and not self.openai.base_url.startswith(("http://", "https://")):
            raise ValueError(f"openai.base_url = {self.openai.base_url!r} must begin with http:// or https://")
        return self

    @property
    def unused_sections(self) -> set[str]:
        """Sections of the engines that are not used."""
        return {"vllm", "openai"} - {self.engine}

    @property
    def num_retries(self) -> int:
        """How often a failed answer is asked for again."""
        return self.retries if self.sampling.temperature > 0 else 0

    @property
    def num_devices(self) -> int:
        """GPUs of one engine (1 where none is known of)."""
        if self.engine != "vllm":
            return 1
        return self.vllm.tensor_parallel_size * int(self.vllm.arguments.get("pipeline_parallel_size", 1))
