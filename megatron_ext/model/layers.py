"""The decoder layers: Transformer Engine's, or `local`, megatron-core's own but for the norm and the attention core.

Shapes: s = sequence, c = this rank's part of it (s / cp), b = micro-batch, n = heads of this rank, g = key/value heads
of this rank, d = head size, h = n·d.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.distributed as dist
import torch.nn.functional as F
from megatron.core.extensions import transformer_engine
from megatron.core.models.common.embeddings import RotaryEmbedding
from megatron.core.models.gpt.gpt_layer_specs import (
    get_gpt_layer_local_spec,
    get_gpt_layer_with_transformer_engine_spec,
)
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel import gather_from_sequence_parallel_region
from megatron.core.transformer import ModuleSpec, TransformerConfig
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from torch import Tensor

from megatron_ext.errors import UserError


class RMSNorm(torch.nn.Module):
    """Root-mean-square norm (arXiv 1910.07467).

    megatron-core's wrapper of torch's norms refuses sequence parallelism; here the weight carries the mark by which
    `finalize_model_grads` sums its gradient over the tensor-parallel ranks.
    """

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **unused: object) -> None:
        super().__init__()
        self.eps = eps
        self.weight = torch.nn.Parameter(torch.ones(hidden_size, dtype=config.params_dtype))
        self.weight.sequence_parallel = config.sequence_parallel

    def forward(self, hidden: Tensor) -> Tensor:
        """Normalise over the last axis."""
        return F.rms_norm(hidden, self.weight.shape, self.weight, self.eps)


class DocumentRotaryEmbedding(RotaryEmbedding):
    """Rotary angles of given positions, where megatron-core's are those of 0 … s-1 alone."""

    position_ids: Tensor | None = None
    """Positions of the micro-batch `[b, c]`, set before each forward pass; None: 0 … s-1."""

    def forward(self, *args: object, **kwargs: object) -> Tensor:
        """Angles `[c, b, 1, d]`, or `[c, 1, 1, d]` when all samples have the same positions."""
        if self.position_ids is None:
            return super().forward(*args, **kwargs)
        angles = self.position_ids.T.float()[..., None] * self.inv_freq  # [c, b, d / 2]
        return torch.cat([angles, angles], dim=-1)[:, :, None]


class ScaledDotProductAttention(MegatronModule):
    """Causal attention core on `torch.nn.functional.scaled_dot_product_attention` (flash attention on a GPU).

    With an attention mask only what it leaves open is attended to; without one every earlier position is. Under context
    parallelism each rank gathers all keys and values and computes its own queries' rows (as arXiv 2407.21783, section
    3.3.2).
    """

    def __init__(self, config: TransformerConfig, layer_number: int, attn_mask_type: AttnMaskType, attention_type: str,
                 softmax_scale: float | None = None, pg_collection: ProcessGroupCollection | None = None,
                 **unused: object) -> None:
        super().__init__(config=config)
        assert attn_mask_type == AttnMaskType.causal
        assert not config.attention_dropout
        self.scale = softmax_scale
        self.context_group = pg_collection.cp if config.context_parallel_size > 1 else None

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        attn_mask_type: AttnMaskType | None = None,
        attention_bias: Tensor | None = None,
        packed_seq_params: object | None = None,
    ) -> Tensor:
        """Attend.

        Args:
            query: `[c, b, n, d]`; key and value: `[c, b, g, d]`, n a multiple of g.
            attention_mask: bias of the scores `[b or 1, 1, c, s]` in their type, minus infinity where a position (row)
                must not see another (column); it must hide the future too. None: plain causal attention.

        Returns:
            `[c, b, h]`.
        """
        assert attention_bias is None
        assert packed_seq_params is None
        if self.context_group is not None:
            key, value = (gather_sequence(part, self.context_group) for part in (key, value))
            if attention_mask is None:
                attention_mask = _causal_rows(key.shape[0], self.context_group, query.device, query.dtype)
        query, key, value = (part.permute(1, 2, 0, 3) for part in (query, key, value))  # [b, n or g, c or s, d]
        context = F.scaled_dot_product_attention(
            query, key, value, attn_mask=attention_mask, is_causal=attention_mask is None, scale=self.scale,
            enable_gqa=key.shape[1] != query.shape[1],
        )
        return context.permute(2, 0, 1, 3).flatten(2)


def positions_on_this_rank(seq_length: int, context_group: dist.ProcessGroup, device: torch.device) -> Tensor:
    """Positions of the sequence that a context-parallel rank holds, int64 `[c]`, in megatron-core's order.

    Of 2 · cp equal pieces rank r has piece r and piece 2 · cp - 1 - r: under a causal mask all have the same work.
    """
    size, rank = context_group.size(), context_group.rank()
    positions = torch.arange(seq_length, device=device)
    if size == 1:
        return positions
    pieces = positions.chunk(2 * size)
    return torch.cat([pieces[rank], pieces[2 * size - 1 - rank]])


def gather_sequence(part: Tensor, context_group: dist.ProcessGroup) -> Tensor:
    """`[c, …]` of every rank as `[s, …]` in the order of the sequence; gradients are summed over the ranks."""
    size = context_group.size()
    pieces = gather_from_sequence_parallel_region(part.contiguous(), group=context_group).chunk(2 * size)
    return torch.cat([*pieces[::2], *pieces[::-2]])


def document_mask(document_ids: Tensor, rows: Tensor | None = None) -> Tensor:
    """The attention mask under which a token sees only earlier tokens of its own document.

    Args:
        document_ids: `[b, s]`, equal for tokens of one document.
        rows: positions `[c]` whose rows are wanted; None: all.

    Returns:
        bool `[b, 1, c, s]`, True = hidden.
    """
    seq_length = document_ids.shape[1]
    rows = torch.arange(seq_length, device=document_ids.device) if rows is None else rows
    other_document = document_ids[:, rows, None] != document_ids[:, None, :]
    return (other_document | future_mask(rows, seq_length))[:, None]


def future_mask(rows: Tensor, seq_length: int) -> Tensor:
    """The causal mask's rows of the given positions, bool `[c, s]`, True = hidden."""
    return torch.arange(seq_length, device=rows.device) > rows[:, None]


def bias_of(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask as what is added to the scores; attention would make one of a mask in every layer, and keep it."""
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(mask, float("-inf"))


@lru_cache(maxsize=2)
def _causal_rows(seq_length: int, context_group: dist.ProcessGroup, device: torch.device,
                 dtype: torch.dtype) -> Tensor:
    """The causal mask's rows of this context-parallel rank, as a bias; every layer asks for the same."""
    return bias_of(future_mask(positions_on_this_rank(seq_length, context_group, device), seq_length), dtype)


def check_implementation(implementation: str) -> None:
    """Raise UserError when these layers cannot run here."""
    if implementation != "transformer_engine":
        return
    asked = "model.layer_implementation transformer_engine"
    if not transformer_engine.HAVE_TE:
        raise UserError(f"{asked}: Transformer Engine is not installed; run `make gpu`, or set "
                        "model.layer_implementation=local")
    try:
        transformer_engine.te.pytorch.get_device_compute_capability()
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"{asked}: Transformer Engine finds no GPU ({error}); set "
                        "model.layer_implementation=local") from error


def decoder_spec(config: TransformerConfig, implementation: str,
                 vp_stage: int | None) -> ModuleSpec | TransformerBlockSubmodules:
    """The layers that this pipeline (and virtual pipeline) stage builds."""
    if implementation == "transformer_engine":
        return get_gpt_layer_with_transformer_engine_spec(qk_layernorm=config.qk_layernorm)
    layer = get_gpt_layer_local_spec(normalization="RMSNorm", qk_layernorm=config.qk_layernorm)
    layer.submodules.input_layernorm = RMSNorm
    layer.submodules.pre_mlp_layernorm = RMSNorm
    attention = layer.submodules.self_attention.submodules
    attention.core_attention = ScaledDotProductAttention
    if config.qk_layernorm:
        attention.q_layernorm = attention.k_layernorm = RMSNorm
    num_layers = get_num_layers_to_build(config, vp_stage)
    return TransformerBlockSubmodules(layer_specs=[layer] * num_layers, layer_norm=RMSNorm)
