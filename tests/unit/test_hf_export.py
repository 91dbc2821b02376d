"""What is said about checkpoints that do not fit their config, and how tensors pass from file to file."""

import json
import threading

import pytest
import torch

from megatron_ext.errors import UserError
from megatron_ext.model.checkpoint_reader import CheckpointReader
from megatron_ext.model.hf_export import _say_dtype, write_hf_folder
from megatron_ext.model.hf_import import write_megatron_checkpoint
from megatron_ext.model.streaming import made_ahead, map_tensor
from tests.hf_models import make_hf_model


@pytest.fixture
def checkpoint(tmp_path):
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    write_megatron_checkpoint(make_hf_model(tmp_path / "model"), folder)
    return folder


@pytest.mark.parametrize(("changes", "message"), [
    ({"intermediate_size": 96}, r"linear_fc1\.weight = GateUp.* has shape \(160, 48\) .*asks for \(192, 48\) in 2"),
    ({"num_hidden_layers": 3}, r"has shape .* in 2 layers; hf/config\.json asks for .* in 3"),
    ({"vocab_size": 400}, r"word_embeddings\.weight = Vocab.* has shape \(256, 48\).* asks for \(400, 48\)"),
    ({"architectures": ["Qwen2ForCausalLM"]}, r"linear_qkv\.bias \(80,\) is missing, from which QKV"),
    ({"tie_word_embeddings": True}, r"output_layer\.weight \(256, 48\) is in no row of the llama table"),
    ({"architectures": ["MambaForCausalLM"]}, r"'MambaForCausalLM' is not supported; supported: LlamaForCausalLM"),
])
def test_a_checkpoint_of_another_model_than_its_config(checkpoint, tmp_path, changes, message):
    config = checkpoint / "hf" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | changes))
    with pytest.raises(UserError, match=message):
        write_hf_folder(checkpoint, tmp_path)
    assert not list(tmp_path.glob("*.safetensors"))


def test_a_checkpoint_that_was_not_written_to_its_end(checkpoint, tmp_path):
    [data] = checkpoint.glob("*.distcp")
    data.write_bytes(data.read_bytes()[:20_000])
    with pytest.raises(UserError, match="is shorter than its checkpoint says"):
        write_hf_folder(checkpoint, tmp_path)
    assert not list(tmp_path.glob("*.safetensors"))
    (checkpoint / ".metadata").unlink()
    with pytest.raises(UserError, match="holds no distributed checkpoint"):
        CheckpointReader(checkpoint)


def test_a_mapped_tensor_is_the_file_and_protects_it(tmp_path):
    values = torch.arange(10_000, dtype=torch.float32)
    (tmp_path / "file").write_bytes(b"header" * 2 + values.numpy().tobytes())
    mapped = map_tensor(tmp_path / "file", 12 + 4 * 5_000, 5_000, torch.float32, whole=True)
    assert mapped.equal(values[5_000:])
    mapped.zero_()
    again = map_tensor(tmp_path / "file", 12, 10_000, torch.float32, whole=False)
    assert again.equal(values)
    assert map_tensor(tmp_path / "file", 12, 0, torch.float32, whole=False).shape == (0,)


def test_made_ahead_keeps_the_order_and_makes_no_more_than_one():
    made = []
    ready = threading.Semaphore(0)

    def maker(number):
        def make():
            made.append(number)
            ready.release()
            return number

        return make

    values = made_ahead(maker(number) for number in range(5))
    for number in range(5):
        assert next(values) == number
        for _ in range(2 if number == 0 else 1 if number < 4 else 0):
            assert ready.acquire(timeout=10)  # this one and the next are made
        assert made == list(range(min(number + 2, 5)))
    assert next(values, None) is None


def test_made_ahead_passes_errors_on():
    def fail():
        raise UserError("no such tensor")

    values = made_ahead([lambda: 1, fail])
    assert next(values) == 1
    with pytest.raises(UserError, match="no such tensor"):
        next(values)


@pytest.mark.parametrize(("config", "expected"), [
    ({"dtype": "float32", "torch_dtype": "float32"}, {"dtype": "bfloat16", "torch_dtype": "bfloat16"}),
    ({"torch_dtype": "torch.float16"}, {"torch_dtype": "bfloat16"}),
    ({"dtype": "bfloat16", "torch_dtype": "float32"}, {"dtype": "bfloat16", "torch_dtype": "bfloat16"}),
    ({"dtype": None}, {"dtype": "bfloat16"}), ({}, {"dtype": "bfloat16"})])
def test_the_type_of_the_weights_is_said_in_every_spelling(tmp_path, config, expected):
    file = tmp_path / "config.json"
    file.write_text(json.dumps(config))
    _say_dtype(file, "bfloat16", "float32" if config.get("dtype") != "bfloat16" else "bfloat16")
    assert json.loads(file.read_text()) == expected


def test_a_config_that_says_so_already_keeps_its_bytes(tmp_path):
    file = tmp_path / "config.json"
    file.write_text('{"torch_dtype":   "bfloat16"}')
    _say_dtype(file, "bfloat16", "bfloat16")
    assert file.read_text() == '{"torch_dtype":   "bfloat16"}'
