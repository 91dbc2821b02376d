"""From a Hugging Face `config.json` to the shape of a model: everything that decides its tensors and its arithmetic.

What is not supported is refused by name: a model that is silently computed another way is worse than none.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from megatron_ext.config import ParallelConfig
from megatron_ext.errors import UserError


@dataclass(frozen=True)
class Rope:
    """Rotary position embedding."""

    base: float
    """theta, e.g. 10,000."""
    scaling: Literal["none", "linear", "llama3"] = "none"
    """How frequencies are changed for longer contexts."""
    factor: float = 1.0
    """Divisor of the scaled frequencies."""
    low_freq_factor: float = 1.0
    """llama3: wavelengths above original context / this are scaled fully."""
    high_freq_factor: float = 4.0
    """llama3: wavelengths below original context / this are left alone."""
    original_max_position_embeddings: int = 8192
    """llama3: the context that the model was first trained with, tokens."""


@dataclass(frozen=True)
class Architecture:
    """A decoder of the Llama shape, in Megatron's names."""

    family: str
    """`llama`, `mistral`, `qwen2` or `qwen3`: selects the table of weights."""
    vocab_size: int
    hidden_size: int
    ffn_hidden_size: int
    num_layers: int
    num_attention_heads: int
    num_query_groups: int
    """Key/value heads."""
    kv_channels: int
    """Size of one head."""
    layernorm_epsilon: float
    max_sequence_length: int
    rope: Rope
    qkv_bias: bool
    """Biases on the query, key and value projections."""
    qk_layernorm: bool
    """RMS norm over each query and key head, before the rotation."""
    tied_embeddings: bool
    """The output layer is the word embedding."""
    dtype: str
    """Type that the weights are stored in: `float32`, `bfloat16` or `float16`."""

    @property
    def num_parameters(self) -> int:
        """Parameters of the whole model."""
        embeddings = self.vocab_size * self.hidden_size * (1 if self.tied_embeddings else 2)
        return self.num_layers * self.layer_parameters + embeddings + self.hidden_size

    @property
    def layer_parameters(self) -> int:
        """Parameters of one layer."""
        heads, groups = self.num_attention_heads * self.kv_channels, self.num_query_groups * self.kv_channels
        attention = 2 * self.hidden_size * (heads + groups) + (heads + 2 * groups if self.qkv_bias else 0)
        norms = 2 * self.hidden_size + (2 * self.kv_channels if self.qk_layernorm else 0)
        return attention + 3 * self.hidden_size * self.ffn_hidden_size + norms

    def transformer_config(self) -> dict[str, Any]:
        """The part of megatron-core's TransformerConfig that the model decides, and the layout does not."""
        import torch

        return {
            "num_layers": self.num_layers,
            "hidden_size": self.hidden_size,
            "ffn_hidden_size": self.ffn_hidden_size,
            "num_attention_heads": self.num_attention_heads,
            "num_query_groups": self.num_query_groups,
            "kv_channels": self.kv_channels,
            "layernorm_epsilon": self.layernorm_epsilon,
            "normalization": "RMSNorm",
            "qk_layernorm": self.qk_layernorm,
            "gated_linear_unit": True,
            "activation_func": torch.nn.functional.silu,
            "add_bias_linear": False,
            "add_qkv_bias": self.qkv_bias,
            "attention_dropout": 0.0,
            "hidden_dropout": 0.0,
        }


@dataclass(frozen=True)
class _Family:
    name: str
    qkv_bias: bool = False
    qk_layernorm: bool = False
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """What transformers takes for a key that config.json leaves out, where it is not the same in all families."""


_FAMILIES = {
    "LlamaForCausalLM": _Family("llama"),
    "MistralForCausalLM": _Family("mistral", defaults={"num_key_value_heads": 8, "sliding_window": 4096}),
    "Qwen2ForCausalLM": _Family("qwen2", qkv_bias=True, defaults={"use_sliding_window": False}),
    "Qwen3ForCausalLM": _Family("qwen3", qk_layernorm=True, defaults={"use_sliding_window": False, "head_dim": 128}),
}
_REQUIRED = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
             "max_position_embeddings")
_COUNTS = (*_REQUIRED, "num_key_value_heads", "head_dim", "sliding_window")
_POSITIVE = ("rms_norm_eps", "rope_theta")
_TRUTHS = ("tie_word_embeddings", "attention_bias", "mlp_bias", "use_sliding_window")
_DTYPES = ("float32", "bfloat16", "float16")
_ROPE_NUMBERS = {"default": (), "linear": ("factor",),
                 "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")}
"""Kind of rotary scaling -> the numbers that it needs."""


def read_architecture(hf_folder: Path) -> Architecture:
    """The architecture of a Hugging Face model folder.

    Raises UserError when config.json cannot be read, or asks for what is not supported.
    """
    path = Path(hf_folder) / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read ({error}); give a Hugging Face model folder") from None
    if not isinstance(config, dict):
        raise UserError(f"{path} holds a {type(config).__name__}, not the settings of a model")
    try:
        return parse_hf_config(config)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def check_layout(architecture: Architecture, parallel: ParallelConfig) -> None:
    """Raise UserError, with the sizes that are possible, when the model cannot be split over the layout."""
    problems = layout_problems(architecture, parallel)
    if problems:
        raise UserError("; ".join(problems))


def layout_problems(architecture: Architecture, parallel: ParallelConfig) -> list[str]:
    """Why the model cannot be split over the layout; empty when it can."""
    problems = []
    tp = parallel.tensor_model_parallel_size
    undivided = _undivided(architecture, tp)
    if undivided:
        allowed = [size for size in range(1, architecture.num_attention_heads + 1)
                   if not _undivided(architecture, size)]
        problems.append(f"tensor_model_parallel_size {tp} does not divide the model's {', '.join(undivided)}; possible "
                        f"here: {', '.join(map(str, allowed))}")
    num_stages = parallel.pipeline_model_parallel_size * (parallel.virtual_pipeline_model_parallel_size or 1)
    if architecture.num_layers % num_stages:
        problems.append(f"{architecture.num_layers} layers cannot be split evenly over {num_stages} pipeline stages "
                        "(pipeline_model_parallel_size x virtual_pipeline_model_parallel_size)")
    return problems


def _undivided(architecture: Architecture, tp: int) -> list[str]:
    """What cannot be split over `tp` ranks. Several ranks may share one key/value head: each computes all of it."""
    split = {"attention heads": architecture.num_attention_heads,
             "MLP columns (intermediate_size)": architecture.ffn_hidden_size}
    groups = architecture.num_query_groups
    if tp % groups:
        split["key/value heads"] = groups
    else:  # megatron-core splits their interleaved rows, wherever that cuts
        split["query, key and value rows"] = (architecture.num_attention_heads + 2 * groups) * architecture.kv_channels
    return [f"{size} {name}" for name, size in split.items() if size % tp]


def parse_hf_config(config: Mapping[str, Any]) -> Architecture:
    """The architecture that a config.json describes, of transformers 4 or 5.

    Raises UserError that lists every missing key and every unsupported feature.
    """
    family = _family(config)
    config = {**family.defaults, **{key: value for key, value in config.items()
                                    if value is not None or key == "sliding_window"}}
    missing = [key for key in _REQUIRED if key not in config]
    if missing:
        raise UserError(f"{', '.join(missing)} missing")
    problems = list(_wrong_types(config)) or list(_unsupported(config))
    if problems:
        raise UserError("; ".join(problems))
    heads = config["num_attention_heads"]
    return Architecture(
        family=family.name,
        vocab_size=config["vocab_size"],
        hidden_size=config["hidden_size"],
        ffn_hidden_size=config["intermediate_size"],
        num_layers=config["num_hidden_layers"],
        num_attention_heads=heads,
        num_query_groups=config.get("num_key_value_heads", heads),
        kv_channels=config.get("head_dim", config["hidden_size"] // heads),
        layernorm_epsilon=config.get("rms_norm_eps", 1e-6),
        max_sequence_length=config["max_position_embeddings"],
        rope=_rope(config),
        qkv_bias=family.qkv_bias,
        qk_layernorm=family.qk_layernorm,
        tied_embeddings=config.get("tie_word_embeddings", False),
        dtype=_dtype(config),
    )


def _family(config: Mapping[str, Any]) -> _Family:
    names = config.get("architectures") or [config.get("model_type", "unknown")]
    name = str(names[0]) if isinstance(names, list) else str(names)
    by_type = {family.name: family for family in _FAMILIES.values()}
    family = _FAMILIES.get(name) or by_type.get(name)
    if family is None:
        raise UserError(f"architecture {name!r} is not supported; supported: {', '.join(_FAMILIES)}")
    return family


def _wrong_types(config: Mapping[str, Any]) -> Iterator[str]:
    """One line for each value that is not of the kind that it must be."""
    yield from (f"{key} = {config[key]!r} must be a whole number of 1 or more" for key in _COUNTS
                if config.get(key) is not None and not (_is_number(config[key], int) and config[key] >= 1))
    yield from (f"{key} = {config[key]!r} must be a number above 0" for key in _POSITIVE
                if key in config and not (_is_number(config[key]) and config[key] > 0))
    yield from (f"{key} = {config[key]!r} must be true or false" for key in _TRUTHS
                if not isinstance(config.get(key, False), bool))
    yield from (f"{key} = {config[key]!r} must be a section of its own: {{rope_type: …, factor: …}}"
                for key in ("rope_scaling", "rope_parameters") if not isinstance(config.get(key, {}), dict))
    if not isinstance(config.get("layer_types", []), list):
        yield f"layer_types = {config['layer_types']!r} must be a list"
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    if "head_dim" not in config and _is_number(hidden, int) and _is_number(heads, int) and heads and hidden % heads:
        yield f"hidden_size {hidden} is no multiple of num_attention_heads {heads}, and there is no head_dim"


def _is_number(value: Any, kind: type = float) -> bool:
    return isinstance(value, (int, kind)) and not isinstance(value, bool) and math.isfinite(value)


def _unsupported(config: Mapping[str, Any]) -> Iterator[str]:
    """One line for each feature that would change the arithmetic."""
    heads, groups = config["num_attention_heads"], config.get("num_key_value_heads", config["num_attention_heads"])
    if heads % groups:
        yield f"num_attention_heads {heads} is no multiple of num_key_value_heads {groups}"
    if config.get("hidden_act", "silu") != "silu":
        yield f"hidden_act {config['hidden_act']!r} is not supported, only 'silu'"
    for key in ("attention_bias", "mlp_bias"):
        if config.get(key):
            yield f"{key} true (biases on output projections) is not supported"
    if config.get("attention_dropout"):
        yield f"attention_dropout {config['attention_dropout']} is not supported; set it to 0"
    if "quantization_config" in config:
        yield "quantized weights (quantization_config) are not supported; take the unquantized model"
    if _slides(config):
        yield (f"sliding-window attention (sliding_window {config.get('sliding_window')}) is not supported; for "
               "sequences no longer than the window set it to null in config.json: the result is the same")


def _slides(config: Mapping[str, Any]) -> bool:
    if "layer_types" in config:
        return "sliding_attention" in config["layer_types"]
    window = config.get("sliding_window")
    return (window is not None and config.get("use_sliding_window", True)
            and window < config["max_position_embeddings"])


def _rope(config: Mapping[str, Any]) -> Rope:
    """Both spellings: `rope_parameters` (transformers 5), or `rope_theta` with `rope_scaling` (4)."""
    parameters = {**(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}
    base = parameters.get("rope_theta", config.get("rope_theta", 10_000.0))
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if not isinstance(kind, str) or kind not in _ROPE_NUMBERS:
        raise UserError(f"rotary scaling {kind!r} is not supported; supported: {', '.join(_ROPE_NUMBERS)}")
    wrong = [f"{key} = {parameters.get(key)!r}" for key in _ROPE_NUMBERS[kind]
             if not _is_number(parameters.get(key)) or parameters[key] <= 0]
    if wrong or not _is_number(base) or base <= 0:
        raise UserError(f"rotary scaling {kind!r} (rope_scaling, rope_parameters) needs numbers above 0: "
                        f"{', '.join(wrong) or f'rope_theta = {base!r}'}; see the model's page for its config.json")
    if parameters.get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0)) != 1.0:
        raise UserError("a rotary embedding of a part of each head (partial_rotary_factor) is not supported")
    if kind == "default":
        return Rope(base)
    if kind == "linear":
        return Rope(base, "linear", parameters["factor"])
    return Rope(base, "llama3", *(parameters[key] for key in _ROPE_NUMBERS["llama3"]))


def _dtype(config: Mapping[str, Any]) -> str:
    dtype = str(config.get("dtype", config.get("torch_dtype", "float32"))).removeprefix("torch.")
    if dtype not in _DTYPES:
        raise UserError(f"dtype {dtype!r} is not supported; supported: {', '.join(_DTYPES)}")
    return dtype
