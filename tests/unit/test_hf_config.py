"""config.json of transformers 4 and 5 to an architecture; what is not supported is named."""

import dataclasses
import json

import pytest

from megatron_ext.errors import UserError
from megatron_ext.model.hf_config import Rope, parse_hf_config, read_architecture

LLAMA = {
    "architectures": ["LlamaForCausalLM"], "vocab_size": 32000, "hidden_size": 2048, "intermediate_size": 5632,
    "num_hidden_layers": 22, "num_attention_heads": 32, "num_key_value_heads": 4, "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5, "tie_word_embeddings": False, "torch_dtype": "bfloat16", "rope_theta": 10000.0,
}


def with_changes(**changes):
    return {**LLAMA, **changes}


def test_tinyllama():
    architecture = parse_hf_config(LLAMA)
    assert (architecture.family, architecture.num_query_groups, architecture.kv_channels) == ("llama", 4, 64)
    assert architecture.dtype == "bfloat16"
    assert architecture.rope == Rope(10000.0)
    assert not architecture.qkv_bias
    assert not architecture.qk_layernorm


def test_families_differ_in_biases_norms_and_defaults():
    qwen2 = parse_hf_config(with_changes(architectures=["Qwen2ForCausalLM"], sliding_window=1024))
    assert qwen2.qkv_bias  # and its window is switched off by default
    qwen3 = parse_hf_config(with_changes(architectures=["Qwen3ForCausalLM"]))
    assert qwen3.qk_layernorm
    assert qwen3.kv_channels == 128
    mistral = with_changes(architectures=["MistralForCausalLM"], sliding_window=None)
    del mistral["num_key_value_heads"]
    assert parse_hf_config(mistral).num_query_groups == 8
    by_type = with_changes(architectures=None, model_type="llama")
    assert parse_hf_config(by_type) == parse_hf_config(LLAMA)


@pytest.mark.parametrize("spelling", [
    {"rope_theta": 500000.0, "rope_scaling": {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0,
                                              "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}},
    {"rope_theta": None, "rope_parameters": {"rope_theta": 500000.0, "rope_type": "llama3", "factor": 32.0,
                                             "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                                             "original_max_position_embeddings": 8192}},
])
def test_rotary_scaling_in_both_spellings(spelling):
    assert parse_hf_config(with_changes(**spelling)).rope == Rope(500000.0, "llama3", 32.0, 1.0, 4.0, 8192)


def test_old_linear_scaling():
    assert parse_hf_config(with_changes(rope_scaling={"type": "linear", "factor": 2.0})).rope == Rope(
        10000.0, "linear", 2.0)


@pytest.mark.parametrize(("changes", "message"), [
    ({"architectures": ["GemmaForCausalLM"]}, "'GemmaForCausalLM' is not supported; supported: LlamaForCausalLM"),
    ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
    ({"attention_bias": True}, "attention_bias"),
    ({"mlp_bias": True}, "mlp_bias"),
    ({"attention_dropout": 0.1}, "attention_dropout 0.1"),
    ({"quantization_config": {"bits": 4}}, "quantized"),
    ({"architectures": ["MistralForCausalLM"], "sliding_window": 1024}, "sliding_window 1024"),
    ({"architectures": ["Qwen2ForCausalLM"], "use_sliding_window": True, "sliding_window": 1024}, "sliding_window"),
    ({"architectures": ["Qwen3ForCausalLM"], "layer_types": ["full_attention", "sliding_attention"]}, "sliding"),
    ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "'yarn' is not supported"),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    ({"num_key_value_heads": 5}, "32 is no multiple of num_key_value_heads 5"),
    ({"torch_dtype": "float64"}, "'float64'"),
    ({"hidden_size": None}, "hidden_size missing"),
    ({"rope_scaling": {"rope_type": "linear"}}, "needs numbers above 0: factor = None"),
    ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "low_freq_factor = None, high_freq_factor = None"),
    ({"rope_scaling": {"rope_type": "linear", "factor": "2.0"}}, "factor = '2.0'"),
    ({"rope_scaling": {"rope_type": "linear", "factor": float("inf")}}, "factor = inf"),
    ({"rope_scaling": "linear"}, "rope_scaling = 'linear' must be a section of its own"),
    ({"rope_scaling": {"rope_type": ["linear"]}}, r"\['linear'\] is not supported"),
    ({"rope_theta": "10000"}, "rope_theta = '10000' must be a number above 0"),
    ({"num_key_value_heads": 0}, "num_key_value_heads = 0 must be a whole number of 1 or more"),
    ({"num_attention_heads": 0}, "num_attention_heads = 0 must be"),
    ({"num_hidden_layers": True}, "num_hidden_layers = True must be"),
    ({"hidden_size": "2048"}, "hidden_size = '2048' must be"),
    ({"hidden_size": 2050}, "hidden_size 2050 is no multiple of num_attention_heads 32"),
    ({"tie_word_embeddings": "false"}, "tie_word_embeddings = 'false' must be true or false"),
    ({"architectures": ["Qwen3ForCausalLM"], "layer_types": 3}, "layer_types = 3 must be a list"),
    ({"architectures": {"a": 1}}, "is not supported"),
])
def test_what_is_not_supported_is_named(changes, message):
    with pytest.raises(UserError, match=message):
        parse_hf_config(with_changes(**changes))


def test_torchs_own_spelling_of_a_type_is_understood():
    assert parse_hf_config(with_changes(torch_dtype="torch.bfloat16")).dtype == "bfloat16"


@pytest.mark.parametrize("text", ["[1]", "null", "{", "[" * 100_000])
def test_a_config_that_is_none(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"config\.json"):
        read_architecture(tmp_path)


def test_a_window_as_long_as_the_context_is_no_window():
    architecture = parse_hf_config(with_changes(architectures=["MistralForCausalLM"], sliding_window=2048))
    assert architecture.max_sequence_length == 2048


def test_all_problems_at_once():
    with pytest.raises(UserError, match=r"hidden_act.*mlp_bias"):
        parse_hf_config(with_changes(hidden_act="gelu", mlp_bias=True))


def test_messages_name_the_file(tmp_path):
    with pytest.raises(UserError, match=r"config\.json cannot be read"):
        read_architecture(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(with_changes(mlp_bias=True)))
    with pytest.raises(UserError, match=r"config\.json: mlp_bias"):
        read_architecture(tmp_path)


@pytest.mark.parametrize("rope", [
    Rope(10000.0), Rope(1e6, "linear", 4.0), Rope(500000.0, "llama3", 8.0, 1.0, 4.0, 64),
])
def test_frequencies_are_those_of_transformers(rope):
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    from megatron_ext.model.gpt import inverse_frequencies

    parameters = {"rope_theta": rope.base, "rope_type": "default" if rope.scaling == "none" else rope.scaling}
    if rope.scaling != "none":
        parameters["factor"] = rope.factor
    if rope.scaling == "llama3":
        parameters |= {key: value for key, value in dataclasses.asdict(rope).items()
                       if key.endswith("freq_factor") or key.startswith("original")}
    config = LlamaConfig(hidden_size=256, num_attention_heads=4, max_position_embeddings=512,
                         rope_parameters=parameters)
    assert inverse_frequencies(rope, 64).equal(LlamaRotaryEmbedding(config).inv_freq)
