"""Rows of the tables in both directions, the files of a model folder, and what is said about bad ones."""

import json
import re
from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from megatron_ext.config import ModelConfig, ParallelConfig
from megatron_ext.errors import UserError
from megatron_ext.model.distributed import single_process
from megatron_ext.model.gpt import build_model, padded_vocab_size
from megatron_ext.model.hf_config import Architecture, Rope, check_layout, read_architecture
from megatron_ext.model.hf_files import HFTensors, Piece, copy_hf_metadata, write_hf_weights
from megatron_ext.model.hf_weights import checkpoint_name, load_hf_weights
from megatron_ext.model.mappings import QKV, GateUp, RowParallel, Shard, Vocab
from tests.hf_models import make_hf_model


def architecture(heads=4, groups=2, head_size=8, vocab_size=100):
    return Architecture("llama", vocab_size, 32, 64, 2, heads, groups, head_size, 1e-5, 128, Rope(1e4), False, False,
                        False, "float32")


def test_qkv_of_ranks_that_share_a_group():
    """One group of two query heads over two ranks: q0 q1 | k0 v0, as megatron-core gathers them."""
    model = architecture(heads=2, groups=1, head_size=1)
    parts = torch.tensor([[0.], [1.]]), torch.tensor([[10.]]), torch.tensor([[20.]])
    ranks = [QKV("q", "k", "v").to_megatron(parts, Shard(rank, 2), 2, model) for rank in range(2)]
    assert [rank.flatten().tolist() for rank in ranks] == [[0, 1], [10, 20]]


layouts = st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(1, 4))


@given(layouts)
@settings(max_examples=30, deadline=None)
def test_qkv_of_all_ranks_is_the_whole_and_goes_back(sizes):
    tp, groups_per_rank, queries_per_group, head_size = sizes
    groups = tp * groups_per_rank
    model = architecture(heads=groups * queries_per_group, groups=groups, head_size=head_size)
    row = QKV("q", "k", "v")
    q, k, v = (torch.randn(heads * head_size, 5) for heads in (groups * queries_per_group, groups, groups))
    local_rows = (queries_per_group + 2) * groups_per_rank * head_size
    parts = [row.to_megatron([q, k, v], Shard(rank, tp), local_rows, model) for rank in range(tp)]
    assert all(part.shape == (local_rows, 5) for part in parts)
    for original, back in zip((q, k, v), row.to_hf(torch.cat(parts), model), strict=True):
        assert back.equal(original)


def test_qkv_is_interleaved_by_query_group():
    """Two groups of two query heads of size 1: q0 q1 k0 v0 q2 q3 k1 v1."""
    model = architecture(heads=4, groups=2, head_size=1)
    q, k, v = torch.tensor([[0.], [1.], [2.], [3.]]), torch.tensor([[10.], [11.]]), torch.tensor([[20.], [21.]])
    whole = QKV("q", "k", "v").to_megatron([q, k, v], Shard(0, 1), 8, model)
    assert whole.flatten().tolist() == [0, 1, 10, 20, 2, 3, 11, 21]
    second = QKV("q", "k", "v").to_megatron([q, k, v], Shard(1, 2), 4, model)
    assert second.flatten().tolist() == [2, 3, 11, 21]


def test_gate_and_up_are_each_split():
    gate, up = torch.arange(4.)[:, None], torch.arange(10., 14.)[:, None]
    part = GateUp("gate", "up").to_megatron([gate, up], Shard(1, 2), 4, architecture())
    assert part.flatten().tolist() == [2, 3, 12, 13]


def test_row_parallel_splits_columns():
    part = RowParallel("o").to_megatron([torch.arange(12.).view(2, 6)], Shard(2, 3), 2, architecture())
    assert part.tolist() == [[4, 5], [10, 11]]


def test_vocabulary_is_filled_up_with_zeros():
    rows = torch.ones(100, 3)
    parts = [Vocab("e").to_megatron([rows], Shard(rank, 4), 32, architecture()) for rank in range(4)]
    whole = torch.cat(parts)
    assert whole.shape == (128, 3)
    assert whole[100:].abs().max() == 0
    assert Vocab("e").to_hf(whole, architecture())[0].equal(rows)
    assert padded_vocab_size(100, 4) == 512
    assert padded_vocab_size(49152, 3) == 49152


def test_local_and_fused_norms_have_one_name():
    fused = "decoder.layers.7.self_attention.linear_qkv.layer_norm_weight"
    assert checkpoint_name("decoder.layers.2.input_layernorm.weight", first_layer=5) == fused
    assert checkpoint_name("decoder.layers.2.self_attention.linear_qkv.layer_norm_weight", first_layer=5) == fused
    assert checkpoint_name("decoder.layers.0.pre_mlp_layernorm.weight") == (
        "decoder.layers.0.mlp.linear_fc1.layer_norm_weight")
    assert checkpoint_name("decoder.final_layernorm.weight", 5) == "decoder.final_layernorm.weight"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_hf_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def broken(model, tmp_path):
    """A copy whose weights a test changes: `broken(change)` loads it after `change(tensors)`."""
    copy_hf_metadata(model, tmp_path)

    def load(change):
        tensors = load_file(model / "model.safetensors")
        change(tensors)
        save_file(tensors, tmp_path / "model.safetensors")
        with single_process():
            load_hf_weights(build_model(ModelConfig(hf_folder=tmp_path, dtype="float32"), ParallelConfig()), tmp_path)

    return load


Q = "model.layers.1.self_attn.q_proj.weight"


def test_a_missing_tensor(broken):
    with pytest.raises(UserError, match=rf"{re.escape(Q)} \(48, 48\) is missing .*linear_qkv.weight = QKV\(q="):
        broken(lambda tensors: tensors.pop(Q))


def test_an_unknown_tensor(broken):
    with pytest.raises(UserError, match=r"model\.layers\.0\.gate\.lora_A \(3, 4\) .*in no row of the llama table"):
        broken(lambda tensors: tensors.update({"model.layers.0.gate.lora_A": torch.zeros(3, 4)}))


def test_a_wrong_shape(broken):
    with pytest.raises(UserError, match=rf"{re.escape(Q)} has shape \(48, 47\); .*QKV.* needs \(48, 48\)"):
        broken(lambda tensors: tensors.update({Q: torch.zeros(48, 47)}))


def test_old_rotary_buffers_are_ignored(broken):
    broken(lambda tensors: tensors.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(4)}))


def test_files_that_are_not_there(model, tmp_path):
    with pytest.raises(UserError, match=r"neither model\.safetensors nor"):
        HFTensors(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {Q: "model-00001.safetensors"}}))
    with pytest.raises(UserError, match=rf"model-00001\.safetensors is missing, in which {re.escape(Q)} and 0 other"):
        HFTensors(tmp_path)
    save_file({"other": torch.zeros(1)}, tmp_path / "model-00001.safetensors")
    with pytest.raises(UserError, match=rf"{re.escape(Q)} is not in model-00001"):
        HFTensors(tmp_path)
    (tmp_path / "model-00001.safetensors").write_bytes(b"no such format")
    with pytest.raises(UserError, match="damaged"):
        HFTensors(tmp_path)


def pieces():
    tensors = {f"t{number}": torch.randn(3, number + 1) for number in range(4)}
    return tensors, [Piece([name], [tuple(tensor.shape)], torch.bfloat16, lambda tensor=tensor: [tensor])
                     for name, tensor in tensors.items()]


@pytest.mark.parametrize(("max_file_bytes", "num_files"), [(10**6, 1), (30, 3), (1, 4)])
def test_weights_are_written_in_files_of_a_size(tmp_path, max_file_bytes, num_files):
    tensors, to_write = pieces()
    write_hf_weights(tmp_path, to_write, max_file_bytes)
    assert len(list(tmp_path.glob("*.safetensors"))) == num_files
    assert (tmp_path / "model.safetensors.index.json").exists() == (num_files > 1)
    written = HFTensors(tmp_path)
    assert written.names() == tensors.keys()
    for name, tensor in tensors.items():
        assert written.tensor(name)[:].equal(tensor.bfloat16())


def test_writing_goes_on_where_it_stopped(tmp_path):
    _, to_write = pieces()
    write_hf_weights(tmp_path, to_write, 1)
    complete = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    (tmp_path / "model-00003-of-00004.safetensors").unlink()

    def refuse():
        raise AssertionError("this piece is written already")

    third_only = [Piece(piece.names, piece.shapes, piece.dtype, piece.make if number == 2 else refuse)
                  for number, piece in enumerate(to_write)]
    write_hf_weights(tmp_path, third_only, 1)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == complete


def test_metadata_is_carried_over_exactly(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    kept = {"config.json": b"{}", "generation_config.json": b'{"a":  1}', "tokenizer.json": b"\xc3\xa9",
            "tokenizer.model": b"\x00\x01", "chat_template.jinja": b"{{ x }}"}
    left = {"model.safetensors": b"w", "model.safetensors.index.json": b"{}", "pytorch_model.bin": b"w",
            "manifest.json": b"{}", ".gitattributes": b""}
    for name, content in {**kept, **left}.items():
        (source / name).write_bytes(content)
    copy_hf_metadata(source, target)
    assert {file.name: file.read_bytes() for file in target.iterdir()} == kept


def test_layouts_that_do_not_fit_name_those_that_do(model):
    shape = read_architecture(model)
    with pytest.raises(UserError, match=r"size 4 does not divide the model's 6 attention heads; possible here: 1, 2$"):
        check_layout(shape, ParallelConfig(tensor_model_parallel_size=4))
    with pytest.raises(UserError, match="2 layers cannot be split evenly over 4 pipeline stages"):
        check_layout(shape, ParallelConfig(pipeline_model_parallel_size=2, virtual_pipeline_model_parallel_size=2))
    check_layout(shape, ParallelConfig(tensor_model_parallel_size=2, pipeline_model_parallel_size=2))


def test_layouts_in_which_ranks_share_a_key_value_head():
    check_layout(architecture(heads=32, groups=4), ParallelConfig(tensor_model_parallel_size=8))
    with pytest.raises(UserError, match=r"size 3 does not divide .*4 key/value heads; possible here: 1, 2, 4$"):
        check_layout(architecture(heads=12, groups=4), ParallelConfig(tensor_model_parallel_size=3))


def test_layers_that_cannot_run_here_are_one_line(model):
    from megatron.core.extensions import transformer_engine

    def no_gpu():
        raise RuntimeError("Found no NVIDIA driver on your system")

    wanted = ModelConfig(hf_folder=model, layer_implementation="transformer_engine")
    with single_process(), patch.object(transformer_engine, "HAVE_TE", False), \
            pytest.raises(UserError, match=r"Transformer Engine is not installed; run `make gpu`, or set .*=local$"):
        build_model(wanted, ParallelConfig())
    device = SimpleNamespace(pytorch=SimpleNamespace(get_device_compute_capability=no_gpu))
    with single_process(), patch.object(transformer_engine, "HAVE_TE", True), \
            patch.object(transformer_engine, "te", device), \
            pytest.raises(UserError, match=r"finds no GPU \(Found no NVIDIA driver"):
        build_model(wanted, ParallelConfig())


def test_weights_of_other_formats_do_not_travel_with_the_metadata(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    wanted = ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "tokenizer.model",
              "special_tokens_map.json", "chat_template.jinja", "vocab.json", "merges.txt", "LICENSE", "README.md"]
    others = ["model.safetensors", "pytorch_model.bin", "tf_model.h5", "flax_model.msgpack", "model.onnx", "last.ckpt",
              "rust_model.ot", "consolidated.00.pth", "model.q4.gguf", "training_args.bin", "events.out.tfevents.1",
              "manifest.json", ".hidden", "optimizer.pt"]
    for name in [*wanted, *others]:
        (source / name).write_text(name)
    copy_hf_metadata(source, tmp_path / "target")
    assert {file.name for file in (tmp_path / "target").iterdir()} == set(wanted)


@pytest.mark.parametrize("is_same", [True, False])
def test_a_tied_model_with_another_output_layer_is_refused(tmp_path, is_same):
    folder = make_hf_model(tmp_path / "model", tie_word_embeddings=True)
    tensors = load_file(folder / "model.safetensors")
    embedding = tensors["model.embed_tokens.weight"]
    tensors["lm_head.weight"] = embedding.clone() if is_same else embedding + 1
    save_file(tensors, folder / "model.safetensors")
    with single_process():
        chunks = build_model(ModelConfig(hf_folder=folder, dtype="float32"), ParallelConfig())
        if is_same:
            load_hf_weights(chunks, folder)
        else:
            with pytest.raises(UserError, match=r"tie_word_embeddings: true, but lm_head\.weight is another tensor"):
                load_hf_weights(chunks, folder)
