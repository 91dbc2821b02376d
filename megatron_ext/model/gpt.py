"""megatron-core's GPTModel in the shape of a Hugging Face model, under the initialised process groups."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel
from megatron.core.transformer import TransformerConfig
from torch import Tensor

from megatron_ext.config import ModelConfig, ParallelConfig
from megatron_ext.model.hf_config import Architecture, Rope, check_layout, read_architecture
from megatron_ext.model.layers import DocumentRotaryEmbedding, bias_of, check_implementation, decoder_spec

VOCAB_DIVISIBLE_BY = 128
"""Each rank's part of the vocabulary is a multiple of this: matrix products on a GPU are slow otherwise."""


class DecoderModel(GPTModel):
    """megatron-core's GPTModel with rotary angles of given positions, and one attention bias for all layers."""

    def forward(self, input_ids: Tensor, position_ids: Tensor | None, attention_mask: Tensor | None,
                **kwargs: Any) -> Tensor:
        """Run this pipeline stage.

        Args:
            input_ids: `[b, c]`.
            position_ids: `[b, c]`; None: 0 … s-1 in every sample (or packed document).
            attention_mask: bool `[b, 1, c, s]`, True = hidden; None: causal.
        """
        self.rotary_pos_emb.position_ids = position_ids
        bias = None if attention_mask is None else bias_of(attention_mask, self.config.params_dtype)
        return super().forward(input_ids, position_ids, bias, **kwargs)


def build_model(model: ModelConfig, parallel: ParallelConfig) -> list[GPTModel]:
    """This rank's model chunks: one, or several under virtual pipeline parallelism. Their weights are not set yet.

    Each chunk has the attribute `architecture`. Rows of the vocabulary that only fill it up are zero, and their logits
    minus infinity, so that losses do not depend on the layout.

    Raises UserError when the model is not supported, cannot be split over the layout, or its layers cannot run here.
    """
    check_implementation(model.layer_implementation)
    architecture = read_architecture(model.hf_folder)
    check_layout(architecture, parallel)
    config = TransformerConfig(**architecture.transformer_config(), **_parallel_options(parallel),
                               **_platform_options(model, parallel), **_model_options(model))
    num_chunks = parallel.virtual_pipeline_model_parallel_size
    stages = [None] if num_chunks is None else range(num_chunks)
    return [_build_chunk(architecture, config, model.layer_implementation, stage) for stage in stages]


def padded_vocab_size(vocab_size: int, tensor_model_parallel_size: int) -> int:
    """The vocabulary rounded up so that every rank's part is a multiple of VOCAB_DIVISIBLE_BY."""
    multiple = VOCAB_DIVISIBLE_BY * tensor_model_parallel_size
    return -(-vocab_size // multiple) * multiple


def compute_device() -> torch.device:
    """Where this process computes."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def _build_chunk(architecture: Architecture, config: TransformerConfig, implementation: str,
                 vp_stage: int | None) -> GPTModel:
    chunk = DecoderModel(
        config=config,
        transformer_layer_spec=decoder_spec(config, implementation, vp_stage),
        vocab_size=padded_vocab_size(architecture.vocab_size, config.tensor_model_parallel_size),
        max_sequence_length=architecture.max_sequence_length,
        position_embedding_type="rope",
        share_embeddings_and_output_weights=architecture.tied_embeddings,
        pre_process=parallel_state.is_pipeline_first_stage(ignore_virtual=False, vp_stage=vp_stage),
        post_process=parallel_state.is_pipeline_last_stage(ignore_virtual=False, vp_stage=vp_stage),
        vp_stage=vp_stage,
    )
    chunk.rotary_pos_emb = DocumentRotaryEmbedding(architecture.kv_channels, rotary_percent=1.0,
                                                   cp_group=parallel_state.get_context_parallel_group())
    chunk.to(compute_device())
    chunk.architecture = architecture
    # megatron-core's own scaling knows one factor and Llama 3's constants; the frequencies themselves say it all.
    chunk.rotary_pos_emb.inv_freq = inverse_frequencies(architecture.rope, architecture.kv_channels).to(
        compute_device())
    _neutralise_vocab_padding(chunk)
    return chunk


def inverse_frequencies(rope: Rope, head_size: int) -> Tensor:
    """Angle by which each pair of a head's channels turns from one position to the next, float32 `[head_size / 2]`.

    base ** (-2i / head_size), scaled as in transformers; llama3: https://arxiv.org/abs/2407.21783, section 3.2, and the
    reference implementation's interpolation between scaled and unscaled wavelengths.
    """
    frequencies = 1.0 / rope.base ** (torch.arange(0, head_size, 2, dtype=torch.int64).float() / head_size)
    if rope.scaling == "none":
        return frequencies
    if rope.scaling == "linear":
        return frequencies / rope.factor
    context = rope.original_max_position_embeddings
    wavelengths = 2 * torch.pi / frequencies
    scaled = torch.where(wavelengths > context / rope.low_freq_factor, frequencies / rope.factor, frequencies)
    blend = (context / wavelengths - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    blended = (1 - blend) * scaled / rope.factor + blend * scaled
    between = (wavelengths >= context / rope.high_freq_factor) & (wavelengths <= context / rope.low_freq_factor)
    return torch.where(between, blended, scaled)


def _neutralise_vocab_padding(chunk: GPTModel) -> None:
    """Zero the rows that fill the vocabulary up, and keep their logits out of every softmax."""
    rows = chunk.vocab_size // chunk.config.tensor_model_parallel_size
    first_row = parallel_state.get_tensor_model_parallel_rank() * rows
    num_true = min(max(chunk.architecture.vocab_size - first_row, 0), rows)  # of this rank's rows
    if num_true == rows:
        return
    for name, parameter in chunk.named_parameters():
        if name in ("embedding.word_embeddings.weight", "output_layer.weight"):
            parameter.data[num_true:].zero_()
    if not chunk.post_process:
        return

    def hide_padding(module: torch.nn.Module, inputs: Any, output: tuple[Tensor, Tensor | None]) -> None:
        output[0][..., num_true:] = float("-inf")

    chunk.output_layer.register_forward_hook(hide_padding)


def _parallel_options(parallel: ParallelConfig) -> dict[str, Any]:
    return {
        "tensor_model_parallel_size": parallel.tensor_model_parallel_size,
        "pipeline_model_parallel_size": parallel.pipeline_model_parallel_size,
        "virtual_pipeline_model_parallel_size": parallel.virtual_pipeline_model_parallel_size,
        "context_parallel_size": parallel.context_parallel_size,
        "sequence_parallel": parallel.sequence_parallel,
    }


def _platform_options(model: ModelConfig, parallel: ParallelConfig) -> dict[str, Any]:
    """What a GPU does faster and a CPU cannot do, or does wrong.

    On gloo the interleaved schedule loses data without an error when it overlaps or batches its messages or frees its
    outputs early.
    """
    fused = {"apply_rope_fusion": model.layer_implementation == "transformer_engine"}
    if not torch.cuda.is_available():
        return {"use_cpu_initialization": True, "batch_p2p_comm": False, **fused}
    interleaved = parallel.virtual_pipeline_model_parallel_size is not None
    return {
        "overlap_p2p_comm": interleaved,
        "batch_p2p_comm": not interleaved,
        "deallocate_pipeline_outputs": True,
        "bias_activation_fusion": True,
        "bias_dropout_fusion": True,
        **fused,
    }


def _model_options(model: ModelConfig) -> dict[str, Any]:
    dtype = getattr(torch, model.dtype)
    options: dict[str, Any] = {
        "params_dtype": dtype,
        "pipeline_dtype": dtype,
        "bf16": dtype == torch.bfloat16,
        # The weights come from a Hugging Face folder. `perform_initialization: False` would leave out the marks of
        # tensor-parallel weights too, and with them parts of the gradient norm.
        "init_method": _leave,
        "output_layer_init_method": _leave,
        "embedding_init_method": _leave,
        "transformer_impl": model.layer_implementation,
        "cuda_graph_scope": [],  # the default is deprecated and warns
    }
    if model.fp8:
        options["fp8"] = "hybrid"
    if model.recompute_activations:
        options |= {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
    return options


def _leave(weight: Tensor) -> Tensor:
    return weight
