"""Settings of importing, exporting and proving parity; here, so that reading them needs neither torch nor megatron."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from megatron_ext.config import ParallelConfig
from megatron_ext.identity import LAYOUT, PLACE, WATCHING
from megatron_ext.settings import REPEATS
from megatron_ext.stage import StageSettings


class ImportSettings(StageSettings):
    """What is imported."""

    model: Annotated[Path, PLACE]
    """Hugging Face folder: config.json, safetensors, tokenizer."""
    parallel: Annotated[ParallelConfig, LAYOUT] = ParallelConfig()
    """Layout under which the checkpoint is loaded to prove parity; any other loads it as well."""
    dtype: Literal["keep", "float32", "bfloat16"] = "keep"
    """Type of the checkpoint's weights; `keep`: that of the folder."""
    parity: bool = True
    """Prove that the checkpoint, loaded by megatron-core under the layout, gives the logits of transformers."""
    parity_positions: int = Field(default=512, gt=1)
    """Token positions over which the logits are compared."""


class ExportSettings(StageSettings):
    """What is exported."""

    checkpoint: Annotated[Path, PLACE]
    """Megatron checkpoint, an artifact: `<run>/checkpoints/iter_…`, or one made by tools.import_hf; the file
    `<run>/checkpoints/latest`: the newest."""
    follow: Annotated[bool, WATCHING] = False
    """`checkpoint` is a run: export each of its checkpoints as it appears, until the run is finished, into a folder of
    the checkpoint's name."""
    poll_seconds: Annotated[float, WATCHING] = Field(default=30.0, gt=0)
    """How often `follow` looks for a new checkpoint, seconds."""
    dtype: Literal["keep", "float32", "bfloat16", "float16"] = "keep"
    """Type of the exported weights; `keep`: that of the checkpoint."""
    max_file_gigabytes: float = Field(default=5.0, gt=0)
    """Weights are split into files of at most this size, in 10^9 bytes."""
    parity: bool = True
    """Prove that the exported folder gives the logits of the checkpoint before it is published."""
    parity_positions: int = Field(default=512, gt=1)
    """Token positions over which the logits are compared."""


class MergeSettings(StageSettings):
    """Which checkpoints are merged into one: each of its tensors is the weighted mean of theirs."""

    checkpoints: Annotated[list[Path], PLACE, REPEATS] = Field(min_length=2)
    """Megatron checkpoints of one architecture and tokenizer, of any layouts: `<run>/checkpoints/iter_…`."""
    weights: list[Annotated[float, Field(ge=0)]] | None = None
    """Of each checkpoint, in their order; their sum need not be 1. null: the plain mean."""
    dtype: Literal["keep", "float32", "bfloat16"] = "keep"
    """Type of the merged weights; `keep`: that of the checkpoints, which must be one."""

    @model_validator(mode="after")
    def _a_weight_each(self) -> MergeSettings:
        if self.weights is not None and len(self.weights) != len(self.checkpoints):
            raise ValueError(f"weights has {len(self.weights)} numbers for {len(self.checkpoints)} checkpoints; give "
                             "one for each")
        if self.weights is not None and not sum(self.weights):
            raise ValueError("weights are all 0; give one that is not")
        return self


class ParitySettings(StageSettings):
    """What is compared: the logits of `model` in transformers with its own in megatron-core, or with another's.

    Here the layout decides: the proof is of the layout that will train.
    """

    model: Annotated[Path, PLACE]
    """Hugging Face folder: the reference, computed by transformers."""
    checkpoint: Annotated[Path | None, PLACE] = None
    """Megatron checkpoint to compare with; without it the weights of `model` are imported."""
    other: Annotated[Path | None, PLACE] = None
    """Another Hugging Face folder to compare with, instead of megatron-core."""
    parallel: ParallelConfig = ParallelConfig()
    """Layout of the Megatron model: that of the training run."""
    layer_implementation: Literal["local", "transformer_engine"] = "local"
    """Implementation of the Megatron model's layers."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type that the compared model computes in (the reference: float32); limits are tight in float32 alone."""
    positions: int = Field(default=512, gt=1)
    """Token positions over which the logits are compared."""

    @model_validator(mode="after")
    def _one_comparison(self) -> ParitySettings:
        if self.checkpoint is not None and self.other is not None:
            raise ValueError("give checkpoint or other, not both")
        return self
