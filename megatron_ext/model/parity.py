"""Proof that two models are one: their logits over every position of a Portuguese text.

A wrong mapping can hide in one head, or at one tensor-parallel size: so the proof runs the whole model, at the layout
that is used, and looks at every logit.

Shapes: s = positions of the text, v = vocabulary.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron_ext.model.hf_config import read_architecture

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json")


class ParityError(RuntimeError):
    """Two models that should be one give different logits."""


@dataclass(frozen=True)
class Limits:
    """What rounding alone explains."""

    max_abs_difference: float
    kl_nats: float
    top1_agreement: float


LIMITS = {"float32": Limits(1e-3, 1e-6, 0.999), "TF32": Limits(0.5, 1e-4, 0.97), "bfloat16": Limits(5.0, 1e-2, 0.9)}
"""Limits by the type in which the model multiplies; the reference always computes in float32.

For SmolLM2-135M in bfloat16 transformers is 2.8, 2.0e-3 and 96.3 % away from itself in float32, megatron-core 2.5,
1.7e-3 and 97.1 %. With products in TF32, which has three bits more than bfloat16, megatron-core is 6.4e-2, 4.2e-6 and
99.8 % away.
"""


def multiplied_in(dtype: str, layer_implementation: str) -> str:
    """The type of matrix products: Transformer Engine's tensor cores read float32 as TF32."""
    return "TF32" if dtype == "float32" and layer_implementation == "transformer_engine" else dtype


@dataclass(frozen=True)
class Parity:
    """How far the logits of two models are apart."""

    max_abs_difference: float
    """Largest difference of any logit at any position."""
    kl_nats: float
    """Mean over the positions of KL(reference || other) of the next token's distribution."""
    top1_agreement: float
    """Fraction of the positions at which both find the same token most probable."""
    num_positions: int
    dtype: str
    setting: str
    """What was compared, e.g. the layout."""

    @property
    def passed(self) -> bool:
        """Whether rounding alone explains the difference; never so when there is a NaN."""
        limits = LIMITS[self.dtype]
        return (self.max_abs_difference < limits.max_abs_difference and self.kl_nats < limits.kl_nats
                and self.top1_agreement >= limits.top1_agreement)

    def line(self, title: str) -> str:
        """The verdict as people read it."""
        return (f"{title} ({self.setting}, {self.dtype}, {self.num_positions} positions of Portuguese text): "
                f"max |Δlogit| {self.max_abs_difference:.1e}, KL {self.kl_nats:.1e}, "
                f"top-1 agreement {100 * self.top1_agreement:.2f} %: {'pass' if self.passed else 'FAIL'}")

    def as_dict(self) -> dict[str, Any]:
        """For a manifest."""
        return {**dataclasses.asdict(self), "passed": self.passed}

    def require(self) -> Parity:
        """Itself; raises ParityError when it did not pass."""
        if not self.passed:
            raise ParityError(f"{self.line('parity')}; limits {LIMITS[self.dtype]}")
        return self


def compare_logits(reference: Tensor, other: Tensor, dtype: str, setting: str) -> Parity:
    """Compare logits `[s, v]`, some positions at a time."""
    assert reference.shape == other.shape, (reference.shape, other.shape)
    largest, kl_sum, num_equal = 0.0, 0.0, 0
    for expected, found in zip(reference.double().split(64), other.double().split(64), strict=True):
        difference = (expected - found).abs().max().item()
        largest = max(largest, difference) if difference == difference else float("nan")
        expected_log, found_log = expected.log_softmax(-1), found.log_softmax(-1)
        kl_sum += (expected_log.exp() * (expected_log - found_log)).sum().item()
        num_equal += (expected.argmax(-1) == found.argmax(-1)).sum().item()
    num_positions = len(reference)
    return Parity(largest, kl_sum / num_positions, num_equal / num_positions, num_positions, dtype, setting)


def check_hf_folders(reference: Path, other: Path, num_positions: int, dtype: str = "float32") -> Parity:
    """Compare two Hugging Face folders, both through transformers."""
    tokens = parity_tokens(reference, num_positions)
    return compare_logits(reference_logits(reference, tokens, dtype), hf_logits(other, tokens, dtype), dtype,
                          "transformers")


def parity_tokens(hf_folder: Path, num_positions: int, multiple_of: int = 1) -> Tensor:
    """Token ids `[1, s]` of the text, as the model's tokenizer reads it; s at most `num_positions`, and a multiple.

    A folder without a tokenizer (a test's) gets the text's UTF-8 bytes as ids.
    """
    text = resources.files("megatron_ext.model").joinpath("parity_text_pt.txt").read_text(encoding="utf-8")
    architecture = read_architecture(hf_folder)
    if any((Path(hf_folder) / name).exists() for name in _TOKENIZER_FILES):
        from transformers import AutoTokenizer

        ids = AutoTokenizer.from_pretrained(hf_folder, local_files_only=True)(text)["input_ids"]
    else:
        ids = [byte % architecture.vocab_size for byte in text.encode()]
    length = min(num_positions, len(ids), architecture.max_sequence_length) // multiple_of * multiple_of
    return torch.tensor([ids[:length]])


def reference_logits(hf_folder: Path, tokens: Tensor, rounded_to: str) -> Tensor:
    """Logits `[s, v]` of transformers in float32, with the weights rounded to a type before."""
    return hf_logits(hf_folder, tokens, "float32", rounded_to)


def hf_logits(hf_folder: Path, tokens: Tensor, dtype: str, rounded_to: str | None = None) -> Tensor:
    """Logits `[s, v]` of transformers, on a GPU where there is one.

    Args:
        dtype: type to compute in.
        rounded_to: type that the weights are rounded to before.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(hf_folder, dtype=getattr(torch, rounded_to or dtype),
                                                 local_files_only=True).to(getattr(torch, dtype))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.no_grad():
        return model.to(device).eval()(tokens.to(device)).logits[0]
