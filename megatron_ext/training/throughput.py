"""Model FLOPs of a training iteration, for TFLOP/s and model FLOPs utilisation (MFU)."""

from __future__ import annotations

from typing import Any


def train_flops_per_token(hf_config: dict[str, Any], seq_length: int) -> float:
    """Floating-point operations that one token costs in forward and backward.

    6 for each weight of a matrix product (2 forward, 4 backward; PaLM, arXiv 2204.02311, appendix B) and
    12 · layers · heads · head size · s for the attention scores, halved because half of a causal matrix is never
    needed. Recomputed activations are not counted: they are no progress.
    """
    hidden, layers = hf_config["hidden_size"], hf_config["num_hidden_layers"]
    heads = hf_config["num_attention_heads"]
    kv_heads = hf_config.get("num_key_value_heads") or heads
    head_size = hf_config.get("head_dim") or hidden // heads
    attention = hidden * head_size * (2 * heads + 2 * kv_heads)
    mlp = 3 * hidden * hf_config["intermediate_size"]
    matrix_weights = layers * (attention + mlp) + hidden * hf_config["vocab_size"]
    return 6.0 * matrix_weights + 6.0 * layers * heads * head_size * seq_length
