"""The speeds and sizes from which the cost of a study is forecast: all assumptions, in one place.

Measure one iteration and one rewriting task on your cluster and put the numbers here.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from megatron_ext.settings import Settings


class CostSettings(Settings):
    """Assumptions of a forecast. A billion is 10^9."""

    billion_parameters: dict[str, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    """Model -> its size in billions; needed for models that are not fetched yet."""
    train_tflops_per_gpu: float = Field(default=400, gt=0)
    """Model TFLOP/s of a GPU in training (H100 SXM, bf16: 989 at the peak; 400 is an MFU of 40 %)."""
    rewrite_tokens_per_second: float = Field(default=6400, gt=0)
    """Tokens that one GPU writes each second with a rewriter of 8 billion parameters; other sizes: in proportion."""
    rewrite_yield: float = Field(default=0.75, gt=0)
    """Tokens that one style yields for each token of its source."""
    evaluate_prompt_tokens: float = Field(default=60e6, gt=0)
    """Tokens of all prompts of one evaluation; scoring of gold answers reads as many again."""
    evaluate_tflops_per_gpu: float = Field(default=150, gt=0)
    """Model TFLOP/s of a GPU that reads prompts."""
    bytes_per_token: float = Field(default=4.0, gt=0)
    """UTF-8 bytes of text a token stands for."""
    parquet_compression: float = Field(default=2.5, gt=0)
    """How many times smaller text is in Parquet."""
    rewrite_records: float = Field(default=3.0, gt=0)
    """Texts kept for each rewrite: the source, the answer as it came and what was made of it."""
    bytes_per_token_id: int = Field(default=2, ge=2)
    """Bytes of a stored token id; 2 up to a vocabulary of 65,536."""
    checkpoint_bytes_per_parameter: float = Field(default=14, gt=0)
    """bf16 weights, float32 weights and two float32 moments of AdamW."""
    model_bytes_per_parameter: float = Field(default=2, gt=0)
    """Fetched and exported models: bf16."""
