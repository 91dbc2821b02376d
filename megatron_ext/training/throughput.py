"""Model FLOPs of a training iteration, for TFLOP/s and model FLOPs utilisation (MFU)."""

from __future__ import annotations

from megatron_ext.model.hf_config import Architecture


def train_flops_per_token(architecture: Architecture, seq_length: int) -> float:
    """Floating-point operations that one token costs in forward and backward.

    6 for each weight of a matrix product (2 forward, 4 backward; PaLM, arXiv 2204.02311, appendix B) and
    12 · layers · heads · head size · s for the attention scores, halved because half of a causal matrix is never
    needed. Recomputed activations are not counted: they are no progress.
    """
    layers, hidden, heads = architecture.num_layers, architecture.hidden_size, architecture.num_attention_heads
    attention = hidden * architecture.kv_channels * (2 * heads + 2 * architecture.num_query_groups)
    mlp = 3 * hidden * architecture.ffn_hidden_size
    matrix_weights = layers * (attention + mlp) + hidden * architecture.vocab_size
    return 6.0 * matrix_weights + 6.0 * layers * heads * architecture.kv_channels * seq_length
