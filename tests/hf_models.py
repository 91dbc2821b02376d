"""Tiny Hugging Face models with random weights, one a family, made on the spot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

_SHAPE: dict[str, Any] = {
    "vocab_size": 131,  # divisible by nothing
    "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 6,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 256, "rms_norm_eps": 1e-5,
    "initializer_range": 0.3,  # so that every part of the model matters for the logits
}
_LLAMA3 = {"rope_type": "llama3", "rope_theta": 500_000.0, "factor": 8.0, "low_freq_factor": 1.0,
           "high_freq_factor": 4.0, "original_max_position_embeddings": 64}

MODELS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama"},
    "llama_tied_scaled": {"model_type": "llama", "tie_word_embeddings": True, "rope_parameters": _LLAMA3},
    "mistral": {"model_type": "mistral", "sliding_window": None, "head_dim": 16},
    "qwen2": {"model_type": "qwen2", "tie_word_embeddings": True, "head_dim": None},
    "qwen3": {"model_type": "qwen3", "rope_parameters": {"rope_type": "linear", "rope_theta": 1e6, "factor": 2.0}},
}


def make_hf_model(folder: Path, name: str = "llama", dtype: str = "float32", **changes: Any) -> Path:
    """Write the model; `changes` go into its config."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = {**_SHAPE, **MODELS[name], **changes}
    settings = {key: value for key, value in settings.items() if value is not None or key == "sliding_window"}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**settings))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:  # norms and biases begin as constants, which would hide an exchange
                parameter.add_(0.3 * torch.randn_like(parameter))
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    return folder
