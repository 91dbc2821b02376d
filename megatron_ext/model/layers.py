"""The decoder layer of the `local` implementation: megatron-core's own parts, but for the norm and the attention core.

Shapes: s = sequence, b = micro-batch, n = heads of this rank, g = key/value heads of this rank, d = head size, h = n·d.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from megatron.core.models.gpt.gpt_layer_specs import (
    get_gpt_layer_local_spec,
    get_gpt_layer_with_transformer_engine_spec,
)
from megatron.core.transformer import ModuleSpec, TransformerConfig
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from torch import Tensor


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


class ScaledDotProductAttention(MegatronModule):
    """Causal attention core on `torch.nn.functional.scaled_dot_product_attention` (flash attention on a GPU).

    With an attention mask only what it leaves open is attended to; without one every earlier position is.
    """

    def __init__(self, config: TransformerConfig, layer_number: int, attn_mask_type: AttnMaskType, attention_type: str,
                 softmax_scale: float | None = None, **unused: object) -> None:
        super().__init__(config=config)
        assert attn_mask_type == AttnMaskType.causal
        assert config.context_parallel_size == 1
        assert not config.attention_dropout
        self.scale = softmax_scale

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
            query: `[s, b, n, d]`; key and value: `[s, b, g, d]`, n a multiple of g.
            attention_mask: bool `[b or 1, 1, s, s]`, True where a position (row) must not see another (column), as is
                Megatron's convention; it must hide the future too. None: plain causal attention.

        Returns:
            `[s, b, h]`.
        """
        assert attention_bias is None
        assert packed_seq_params is None
        query, key, value = (part.permute(1, 2, 0, 3) for part in (query, key, value))  # [b, n or g, s, d]
        visible = None if attention_mask is None else ~attention_mask
        context = F.scaled_dot_product_attention(
            query, key, value, attn_mask=visible, is_causal=visible is None, scale=self.scale,
            enable_gqa=key.shape[1] != query.shape[1],
        )
        return context.permute(2, 0, 1, 3).flatten(2)


def document_mask(document_ids: Tensor) -> Tensor:
    """The attention mask under which a token sees only earlier tokens of its own document.

    Args:
        document_ids: `[b, s]`, equal for tokens of one document.

    Returns:
        bool `[b, 1, s, s]`, True = hidden.
    """
    same_document = document_ids[:, :, None] == document_ids[:, None, :]
    return ~same_document.tril()[:, None]


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
