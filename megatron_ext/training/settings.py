"""Settings of the stage that measures held-out loss; nothing here needs torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from megatron_ext.config import ModelConfig, ParallelConfig, RunConfig
from megatron_ext.identity import LAYOUT, PLACE
from megatron_ext.settings import validate
from megatron_ext.stage import StageSettings

HF_METADATA = "hf"


class HeldOutSettings(StageSettings):
    """Which model is measured on what."""

    model: Annotated[Path | None, PLACE] = None
    """Hugging Face folder of the model; give it or `checkpoint`."""
    checkpoint: Annotated[Path | None, PLACE] = None
    """Megatron checkpoint of any layout."""
    sources: Annotated[dict[str, Path], PLACE]
    """Name -> tokenized artifact whose validation split is measured."""
    max_tokens_per_source: int = Field(default=1_000_000, gt=0)
    """Tokens of each validation split that are used, from its beginning, in whole documents."""
    seq_length: int = Field(default=4096, gt=0)
    """Tokens that the model sees at once; a longer document is read in windows."""
    stride: int | None = Field(default=None, gt=0)
    """Tokens between two windows of a document: in all but the first, each prediction has at least seq_length - stride
    tokens before it. null: half of seq_length."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Type of weights and activations."""
    layer_implementation: Annotated[Literal["local", "transformer_engine"], LAYOUT] = "local"
    """As model.layer_implementation of a run."""
    micro_batch_size: Annotated[int, LAYOUT] = Field(default=1, gt=0)
    """Samples in one forward pass."""
    parallel: Annotated[ParallelConfig, LAYOUT] = ParallelConfig()
    """Layout over the processes that torchrun started."""

    @model_validator(mode="after")
    def _one_model(self) -> HeldOutSettings:
        if (self.model is None) == (self.checkpoint is None):
            raise ValueError("give one of model, checkpoint")
        if self.stride is not None and self.stride > self.seq_length:
            raise ValueError(f"stride = {self.stride} is above seq_length = {self.seq_length}: tokens between two "
                             "windows would not be measured")
        return self

    @property
    def hf_folder(self) -> Path:
        """Where the model's config and tokenizer lie."""
        return self.model or self.checkpoint / HF_METADATA  # type: ignore[operator]

    def as_run(self) -> RunConfig:
        """A run that would measure the same before its first iteration."""
        model = ModelConfig(hf_folder=self.hf_folder, dtype=self.dtype, layer_implementation=self.layer_implementation)
        return validate(RunConfig, {
            "output": ".", "model": model.model_dump(mode="json"), "parallel": self.parallel.model_dump(mode="json"),
            "data": {"sources": {}, "seq_length": self.seq_length},
            "train": {"budget_tokens": 1, "micro_batch_size": self.micro_batch_size},
            "validation": {"sources": {name: str(path) for name, path in self.sources.items()},
                           "max_tokens_per_source": self.max_tokens_per_source},
        }, where="held-out loss")
