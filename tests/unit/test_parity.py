"""Parity holds for every family, and fails for every wrong mapping."""

import dataclasses
import json
import re
import sys
from unittest.mock import patch

import pytest
import torch

from megatron_ext.artifacts import Artifact
from megatron_ext.config import ModelConfig, ParallelConfig
from megatron_ext.model import mappings
from megatron_ext.model.distributed import single_process
from megatron_ext.model.gpt import build_model, inverse_frequencies
from megatron_ext.model.hf_weights import load_hf_weights
from megatron_ext.model.layers import document_mask
from megatron_ext.model.megatron_parity import check_chunks, megatron_logits
from megatron_ext.model.parity import (
    Parity,
    ParityError,
    check_hf_folders,
    compare_logits,
    hf_logits,
    parity_tokens,
)
from tests.hf_models import MODELS, make_hf_model
from tools import check_parity, export_hf, import_hf

QKV_NAME = "decoder.layers.*.self_attention.linear_qkv.weight"
FC1_NAME = "decoder.layers.*.mlp.linear_fc1.weight"


@pytest.fixture(scope="module")
def multi_head(tmp_path_factory):
    """A model with as many key as query heads, so that an exchange keeps all shapes."""
    return make_hf_model(tmp_path_factory.mktemp("multi_head"), num_key_value_heads=6)


def verdict_after(folder, spoil=lambda chunk: None):
    with single_process():
        chunks = build_model(ModelConfig(hf_folder=folder, dtype="float32"), ParallelConfig())
        load_hf_weights(chunks, folder)
        with torch.no_grad():
            spoil(chunks[0])
        return check_chunks(chunks, folder, "float32", 64)


@pytest.mark.parametrize("name", MODELS)
def test_every_family_agrees(tmp_path, name):
    verdict = verdict_after(make_hf_model(tmp_path, name))
    assert verdict.passed, verdict
    assert verdict.max_abs_difference < 1e-4
    assert verdict.num_positions == 64


@pytest.mark.parametrize(("name", "wrong"), [
    (QKV_NAME, lambda row: dataclasses.replace(row, q=row.k, k=row.q)),
    (FC1_NAME, lambda row: dataclasses.replace(row, gate=row.up, up=row.gate)),
], ids=["query_and_key_swapped", "gate_and_up_swapped"])
def test_a_wrong_row_fails(multi_head, monkeypatch, name, wrong):
    monkeypatch.setitem(mappings.LLAMA, name, wrong(mappings.LLAMA[name]))
    verdict = verdict_after(multi_head)
    assert not verdict.passed
    with pytest.raises(ParityError, match="FAIL"):
        verdict.require()


def rotate_one_head(chunk):
    """Shift the channels of the first query head of the second layer by one."""
    weight = chunk.decoder.layers[1].self_attention.linear_qkv.weight
    weight[:8] = weight[:8].roll(1, 0)


def take_another_rope_base(chunk):
    rope = dataclasses.replace(chunk.architecture.rope, base=20_000.0)
    chunk.rotary_pos_emb.inv_freq = inverse_frequencies(rope, chunk.architecture.kv_channels)


def leave_out_a_norm(chunk):
    chunk.decoder.layers[0].pre_mlp_layernorm.forward = lambda hidden: hidden


def forget_a_norms_weight(chunk):
    chunk.decoder.final_layernorm.weight.fill_(1.0)


@pytest.mark.parametrize("spoil", [rotate_one_head, take_another_rope_base, leave_out_a_norm, forget_a_norms_weight])
def test_a_wrong_model_fails(multi_head, spoil):
    assert not verdict_after(multi_head, spoil).passed


def main_with(main, *arguments):
    with patch.object(sys, "argv", ["program", *map(str, arguments)]):
        return main()


def test_programs_publish_nothing_when_a_row_is_wrong(multi_head, monkeypatch, tmp_path, capsys):
    """Import and export with query and key exchanged end with exit code 1; with the right row with 0."""
    right = mappings.LLAMA[QKV_NAME]
    wrong = dataclasses.replace(right, q=right.k, k=right.q)
    imports = ["--output", tmp_path / "imported", f"model={multi_head}", "parity_positions=32"]
    exports = ["--output", tmp_path / "exported", f"checkpoint={tmp_path / 'imported'}", "parity_positions=32"]
    for program, arguments in ((import_hf.main, imports), (export_hf.main, exports)):
        monkeypatch.setitem(mappings.LLAMA, QKV_NAME, wrong)
        assert main_with(program, *arguments) == 1
        assert not arguments[1].exists()
        monkeypatch.setitem(mappings.LLAMA, QKV_NAME, right)
        assert main_with(program, *arguments) == 0
    assert re.findall(r"top-1 agreement [\d.]+ %: (\w+)", capsys.readouterr().out) == ["FAIL", "pass"] * 2
    assert Artifact.open(tmp_path / "exported").counts["parity"]["passed"]


def test_the_program_compares_two_folders(multi_head, tmp_path):
    other = make_hf_model(tmp_path / "other", num_key_value_heads=6, rms_norm_eps=1e-2)
    equal, different = tmp_path / "equal", tmp_path / "different"
    assert main_with(check_parity.main, "--output", different, f"model={multi_head}", f"other={other}") == 1
    assert not different.exists()
    assert main_with(check_parity.main, "--output", equal, f"model={multi_head}", f"other={multi_head}") == 0
    assert Artifact.open(equal, kind="parity").counts["max_abs_difference"] == 0


def test_one_wrong_position_is_enough():
    reference = torch.randn(100, 50)
    other = reference.clone()
    other[77, 3] += 0.01
    verdict = compare_logits(reference, other, "float32", "test")
    assert verdict.max_abs_difference == pytest.approx(0.01, rel=1e-3)
    assert not verdict.passed
    assert compare_logits(reference, reference, "float32", "test").passed


def test_nan_never_passes():
    reference = torch.randn(70, 5)
    other = reference.clone()
    other[0, 0] = float("nan")
    assert not compare_logits(reference, other, "float32", "test").passed


def test_kl_and_agreement_are_those_of_the_definition():
    reference, other = torch.tensor([[0.0, 0.0], [1.0, 0.0]]), torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    p, q = torch.softmax(reference[0].double(), 0), torch.softmax(other[0].double(), 0)
    verdict = compare_logits(reference, other, "bfloat16", "test")
    assert verdict.kl_nats == pytest.approx((p * (p / q).log()).sum().item() / 2)
    assert verdict.top1_agreement == 0.5


def test_the_line_and_the_manifest_tell_all():
    verdict = Parity(3.2e-5, 1.1e-11, 1.0, 512, "float32", "tp=1 pp=2")
    assert verdict.line("parity after import") == (
        "parity after import (tp=1 pp=2, float32, 512 positions of Portuguese text): max |Δlogit| 3.2e-05, "
        "KL 1.1e-11, top-1 agreement 100.00 %: pass")
    assert json.loads(json.dumps(verdict.as_dict()))["passed"] is True


def test_two_folders(tmp_path, multi_head):
    assert check_hf_folders(multi_head, multi_head, 64).passed
    other = make_hf_model(tmp_path, num_key_value_heads=6, rms_norm_eps=1e-2)
    assert not check_hf_folders(multi_head, other, 64).passed


def test_positions_are_a_multiple_for_sequence_parallelism(multi_head):
    assert parity_tokens(multi_head, 64, multiple_of=3).shape == (1, 63)


def test_padding_of_the_vocabulary_does_not_enter_the_loss(multi_head):
    """131 tokens in 256 rows: the loss is that of transformers all the same."""
    with single_process():
        chunks = build_model(ModelConfig(hf_folder=multi_head, dtype="float32"), ParallelConfig())
        load_hf_weights(chunks, multi_head)
        tokens = parity_tokens(multi_head, 33)
        inputs, labels = tokens[:, :-1], tokens[:, 1:]
        losses = chunks[0](inputs, torch.arange(32)[None], None, labels=labels)
        losses.sum().backward()
    expected = torch.nn.functional.cross_entropy(hf_logits(multi_head, inputs, "float32"), labels[0], reduction="none")
    torch.testing.assert_close(losses[0], expected, rtol=1e-5, atol=1e-5)
    gradient = chunks[0].output_layer.weight.grad
    assert gradient.isfinite().all()
    assert gradient[131:].abs().max() == 0


def test_masked_documents_do_not_see_each_other(multi_head):
    """Logits of two documents in one sequence, the second after its mask, equal those of the second alone."""
    with single_process():
        chunks = build_model(ModelConfig(hf_folder=multi_head, dtype="float32"), ParallelConfig())
        load_hf_weights(chunks, multi_head)
        tokens = parity_tokens(multi_head, 40)
        alone = megatron_logits(chunks, tokens[:, 15:])
        mask = document_mask((torch.arange(40) >= 15).long()[None])
        with torch.no_grad():
            packed = chunks[0](tokens, torch.arange(40)[None], mask)[0, 15:, :131]
            unmasked = chunks[0](tokens, torch.arange(40)[None], None)[0, 15:, :131]
    torch.testing.assert_close(packed, alone, rtol=1e-4, atol=1e-4)
    assert (unmasked - alone).abs().max() > 0.1
