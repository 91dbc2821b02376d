"""Memory and disk that a run needs, worked out from its configuration; the arithmetic is meant to be read.

Symbols, as in Korthikanti et al. (arXiv 2205.05198): s = sequence, b = micro-batch, h = hidden size, f = MLP columns,
v = vocabulary, a = query heads x head size, g = key/value heads x head size, L = layers of the rank.
"""

from __future__ import annotations

from dataclasses import dataclass

from megatron_ext.config import RunConfig
from megatron_ext.model.hf_config import Architecture

GIB = 2**30
H100_MEMORY_BYTES = 80e9
_FRAMEWORK_BYTES = 4 * GIB
"""CUDA context, NCCL buffers, workspaces and fragmentation: an allowance, not a measurement."""


@dataclass(frozen=True)
class Memory:
    """Bytes that the fullest rank holds."""

    num_parameters: int
    """Parameters of that rank."""
    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int

    @property
    def total(self) -> int:
        """Everything, with an allowance for what is not counted."""
        return self.counted + int(_FRAMEWORK_BYTES)

    @property
    def counted(self) -> int:
        """Without that allowance."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.logits


def count_parameters(architecture: Architecture) -> int:
    """Parameters of the whole model."""
    return architecture.num_parameters


def estimate_memory(config: RunConfig, architecture: Architecture, dp: int) -> Memory:
    """Memory of the fullest rank: the first pipeline stage, which holds the most micro-batches, or the last one.

    Args:
        dp: data-parallel size.
    """
    parallel = config.parallel
    tp, pp, cp = (parallel.tensor_model_parallel_size, parallel.pipeline_model_parallel_size,
                  parallel.context_parallel_size)
    bytes_per_value = 2 if config.model.dtype == "bfloat16" else 4
    embedding = architecture.vocab_size * architecture.hidden_size
    num_embeddings = 2 if pp == 1 and not architecture.tied_embeddings else 1
    parameters = (architecture.num_layers // pp * architecture.layer_parameters + num_embeddings * embedding) // tp
    # Two moments, and float32 main weights beside bfloat16 ones; the distributed optimizer shards them.
    optimizer_bytes = 12 if config.model.dtype == "bfloat16" else 8
    shards = dp * cp if parallel.use_distributed_optimizer else 1
    tokens = config.data.seq_length * config.train.micro_batch_size // cp  # s·b of a rank
    num_micro_batches = config.train.global_batch_size // (config.train.micro_batch_size * dp)
    in_flight = min(pp, num_micro_batches)  # of the first stage in the 1F1B schedule
    return Memory(
        num_parameters=parameters,
        weights=bytes_per_value * parameters,
        gradients=4 * parameters,
        optimizer=optimizer_bytes * parameters // shards,
        activations=in_flight * tokens * _activation_bytes(config, architecture, bytes_per_value),
        # The last stage's logits with their float32 copy and gradient. The first stage has none, but more in flight.
        logits=tokens * architecture.vocab_size // tp * (bytes_per_value + 8),
    )


def checkpoint_bytes(config: RunConfig, architecture: Architecture) -> int:
    """Size of one checkpoint on disk: weights, both moments and, beside bfloat16 weights, float32 main weights."""
    return count_parameters(architecture) * (14 if config.model.dtype == "bfloat16" else 16)


def describe_memory(config: RunConfig, architecture: Architecture, dp: int) -> list[str]:
    """The estimate as lines."""
    memory = estimate_memory(config, architecture, dp)
    parts = ", ".join(f"{name} {getattr(memory, name) / GIB:.1f}"
                      for name in ("weights", "gradients", "optimizer", "activations", "logits"))
    verdict = "fits" if memory.total <= H100_MEMORY_BYTES else "DOES NOT FIT"
    lines = [f"memory of the fullest rank: {parts}, other {_FRAMEWORK_BYTES / GIB:.1f}: about {memory.total / GIB:.1f} "
             f"GiB; {verdict} an H100 with 80 GB"]
    if memory.total > H100_MEMORY_BYTES:
        lines[0] += (" (raise tensor_model_parallel_size or pipeline_model_parallel_size, lower micro_batch_size, or "
                     "set model.recompute_activations)")
    parameters, size, kept = (count_parameters(architecture), checkpoint_bytes(config, architecture),
                              config.checkpoint.keep_last)
    lines.append(f"checkpoint: {parameters:,} parameters x {size // parameters} bytes = {size / GIB:.1f} GiB each; "
                 f"{kept} kept and one in the making: {(kept + 1) * size / GIB:.1f} GiB of disk")
    return lines


def _activation_bytes(config: RunConfig, architecture: Architecture, bytes_per_value: int) -> int:
    """Bytes that the layers of a rank keep for the backward pass, a token.

    A layer keeps: the inputs of both norms and of both projections that read them (4h), query, key, value and their
    rotated forms (2a + 3g), the attention's output (a), and of the MLP gate, up and their product (3f). What is
    sharded over tp counts a part; the h-wide ones too under sequence parallelism. With recomputation a layer keeps its
    input alone, and one layer at a time has all of it.
    """
    tp = config.parallel.tensor_model_parallel_size
    heads = architecture.num_attention_heads * architecture.kv_channels
    groups = architecture.num_query_groups * architecture.kv_channels
    sharded = 3 * heads + 3 * groups + 3 * architecture.ffn_hidden_size
    whole = architecture.hidden_size / (tp if config.parallel.sequence_parallel else 1)
    layer = 4 * whole + sharded / tp
    num_layers = architecture.num_layers // config.parallel.pipeline_model_parallel_size
    values = num_layers * whole + layer if config.model.recompute_activations else num_layers * layer
    return round(bytes_per_value * values)
