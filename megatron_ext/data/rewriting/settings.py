"""The settings of rewriting.

Most decide the bytes of the rewrites. Those that do not (addresses, numbers of processes, bounds at which a run stops)
say so, and carry a role (megatron_ext/identity.py) that leaves them out of what an artifact is asked for with.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from megatron_ext.data.rewriting.engines.interface import EngineName, Sampling
from megatron_ext.data.rewriting.engines.settings import OpenaiSettings, VllmSettings
from megatron_ext.data.rewriting.prompts import Order, load_prompts
from megatron_ext.identity import LAYOUT, PLACE, WATCHING
from megatron_ext.stage import StageSettings

Count = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]
FailedChunks = Literal["survivors", "drop_document"]


class RewriteSettings(StageSettings):
    """How a selection is rewritten."""

    documents: Annotated[Path, PLACE]
    """Selection (artifact) whose documents are rewritten."""
    model: Annotated[Path | None, PLACE] = None
    """Folder of the rewriter, an instruct model (tools.fetch_model); engine openai needs none."""
    tokenizer: Annotated[Path, PLACE]
    """Folder of the training tokenizer, which counts tokens."""
    styles: list[str] = Field(["easy", "medium", "hard", "qa"], min_length=1)
    """Styles to write; each has a prompt file."""
    prompts_folder: Annotated[Path | None, PLACE] = None
    """Folder with prompt files of one's own, `<style>.md`; they win over the built-in ones."""
    thresholds_file: Annotated[Path | None, PLACE] = None
    """YAML file of thresholds by style in place of the built-in one."""
    order: Order = "document_first"
    """document_first lets an engine with a prefix cache share a chunk among its styles."""
    max_documents: Count | None = None
    """At most so many documents, chosen by a hash of their ids; none: all."""
    max_document_tokens: Count | None = None
    """Longer documents are left out."""
    max_chunks_per_document: Count | None = None
    """Only so many chunks from the start of each document (a trial run); none: all, nothing of a document is lost."""
    chunk_tokens: int = Field(350, ge=8)
    """Size of a chunk at most, in tokens of the source; longer inputs lose information (WRAP, arXiv 2401.16380)."""
    failed_chunks: FailedChunks = "survivors"
    """When a chunk failed its checks: keep the document's other chunks, or drop_document."""
    engine: EngineName = "transformers"
    """What runs the model: transformers (CPU), vllm (`make vllm`), openai (an endpoint)."""
    vllm: VllmSettings = VllmSettings()
    """Of engine vllm."""
    openai: OpenaiSettings = OpenaiSettings()
    """Of engine openai."""
    context_tokens: Count | None = None
    """Tokens that the model holds, where its folder does not tell (openai); longer chunks are split further."""
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Arguments of the model's chat template, e.g. {enable_thinking: false} for Qwen3."""
    sampling: Sampling = Sampling()
    """How tokens are drawn."""
    max_new_tokens_ratio: float = Field(2.0, gt=0)
    """Tokens that a completion may have, at most, for each token of its source."""
    min_new_tokens: Count = 32
    """The same bound is never below this, for short sources."""
    batch_size: Annotated[Count, LAYOUT] = 16
    """Requests of a batch of engine transformers, where bytes may depend on it; the other engines fill their batches
    themselves."""
    window_tokens: Count = 2_000_000
    """Work is divided into windows of whole documents with so many source tokens: longest first within a window, shared
    by parts window by window, held in memory at most five at a time."""
    check_workers: Annotated[int | None, WATCHING] = Field(None, ge=0)
    """Processes that split documents and check answers beside the engine; none: 2, and 0 for engine transformers.
    Decides no byte."""
    retries: int = Field(1, ge=0)
    """How often a failed chunk is asked for again, with another seed; never at temperature 0, which repeats itself."""
    max_failed_fraction: Annotated[Fraction, WATCHING] = 0.4
    """The run stops when more than this share of its requests failed (no answer, refused), counted after 20 and at the
    end. Decides no byte."""
    min_survived_fraction: Annotated[Fraction, WATCHING] = 0.05
    """The run stops when fewer than this share of chunks pass the checks: of any style after its first 100 first
    answers, and of all at the end; 0: never. Decides no byte."""
    seed: int = Field(0, ge=0)
    """Decides the choice of documents and what is drawn."""

    @field_validator("styles")
    @classmethod
    def _no_style_twice(cls, styles: list[str]) -> list[str]:
        if len(set(styles)) < len(styles):
            raise ValueError("a style is named twice")
        return styles

    @model_validator(mode="after")
    def _engine_and_styles_are_there(self) -> RewriteSettings:
        from megatron_ext.data.rewriting.checking.checks import load_thresholds

        load_prompts(self.styles, self.prompts_folder)
        load_thresholds(self.styles, self.thresholds_file)
        if self.engine == "openai" and not self.openai.base_url.startswith(("http://", "https://")):
            raise ValueError(f"openai.base_url = {self.openai.base_url!r} must begin with http:// or https://")
        return self

    @property
    def unused_sections(self) -> set[str]:
        """Sections of the engines that are not used."""
        return {"vllm", "openai"} - {self.engine}

    @property
    def num_retries(self) -> int:
        """How often a failed chunk is asked for again."""
        return self.retries if self.sampling.temperature > 0 else 0

    @property
    def num_helpers(self) -> int:
        """Processes beside the engine."""
        return self.check_workers if self.check_workers is not None else 0 if self.engine == "transformers" else 2

    @property
    def num_devices(self) -> int:
        """GPUs of one engine (1 where none is known of)."""
        if self.engine != "vllm":
            return 1
        return self.vllm.tensor_parallel_size * int(self.vllm.arguments.get("pipeline_parallel_size", 1))
