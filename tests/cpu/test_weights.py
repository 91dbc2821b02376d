"""Hugging Face -> Megatron under several layouts -> Hugging Face, bit for bit, with parity in between."""

import json
import sys
from unittest.mock import patch

import pytest
from safetensors import safe_open

from megatron_ext.artifacts import Artifact
from megatron_ext.model.hf_export import write_hf_folder
from megatron_ext.model.hf_import import write_megatron_checkpoint
from tests.cpu.cases_weights import LAYOUTS
from tests.cpu.launch import run_distributed
from tests.hf_models import MODELS, make_hf_model

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """The folder of all models, each saved as a checkpoint by every layout; and what that printed."""
    folder = tmp_path_factory.mktemp("weights")
    for name in MODELS:
        make_hf_model(folder / name, name, dtype="bfloat16" if name == "mistral" else "float32")
        streamed = folder / f"{name}-streamed"
        streamed.mkdir()
        write_megatron_checkpoint(folder / name, streamed)
    make_hf_model(folder / "deep", "qwen3", num_hidden_layers=4, tie_word_embeddings=True)
    output = run_distributed("tests.cpu.cases_weights:import_and_check", nproc=4, folder=str(folder),
                             models=list(MODELS), deep_model=str(folder / "deep"))
    (folder / "output.txt").write_text(output)
    return folder


def tensors(folder):
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


@pytest.mark.parametrize("name", MODELS)
def test_round_trips_are_bit_exact(lab, name, tmp_path):
    original = tensors(lab / name)
    for written_by in [*(f"{tp}-{pp}" for tp, pp in LAYOUTS), "streamed"]:
        target = tmp_path / written_by
        target.mkdir()
        write_hf_folder(lab / f"{name}-{written_by}", target)
        exported = tensors(target)
        assert exported.keys() == original.keys()
        for tensor, value in original.items():
            assert exported[tensor].dtype == value.dtype
            assert exported[tensor].equal(value), (tensor, written_by)
        assert (target / "config.json").read_bytes() == (lab / name / "config.json").read_bytes()


def test_vocabulary_is_padded_for_tensor_parallelism(lab):
    """131 tokens fill two ranks' 128 rows each, and the padding is not exported (the round trip says so)."""
    from megatron_ext.model.checkpoint_reader import CheckpointReader

    embedding = CheckpointReader(lab / "llama-2-1").read("embedding.word_embeddings.weight", None)
    assert embedding.shape == (256, 48)
    assert embedding[131:].abs().max() == 0
    assert embedding[130].abs().max() > 0


def test_parity_under_sequence_and_virtual_pipeline_parallelism(lab):
    lines = (lab / "output.txt").read_text().splitlines()
    [sequence, virtual] = [line for line in lines if line.startswith("parity (")]
    assert sequence.startswith("parity (tp=2 pp=2, float32, 64 positions")
    assert sequence.endswith(": pass")
    assert virtual.startswith("parity (tp=2 pp=2 vpp=2, float32")
    assert virtual.endswith(": pass")


def test_programs_prove_parity_and_agree(lab, tmp_path, capsys):
    from tools.export_hf import main as export_main
    from tools.import_hf import main as import_main

    assert main_with(import_main, "--output", tmp_path / "imported", f"model={lab / 'qwen2'}", "dtype=bfloat16",
                     "parity_positions=64") == 0
    assert "parity after import (tp=1 pp=1, float32, 64 positions" in capsys.readouterr().out
    assert main_with(export_main, "--output", tmp_path / "exported", f"checkpoint={tmp_path / 'imported'}",
                     "parity_positions=64") == 0
    assert "parity after export (tp=1 pp=1, float32, 64 positions" in capsys.readouterr().out
    for artifact in (Artifact.open(tmp_path / "imported", kind="checkpoint"),
                     Artifact.open(tmp_path / "exported", kind="hf_model")):
        assert artifact.counts["parity"]["passed"]
        assert artifact.verify() == []
    for tensor, value in tensors(lab / "qwen2").items():
        assert tensors(tmp_path / "exported")[tensor].equal(value.bfloat16())


def main_with(main, *arguments):
    with patch.object(sys, "argv", ["program", *map(str, arguments)]):
        return main()


def test_export_casts_when_asked(lab, tmp_path):
    checkpoint = lab / "llama-1-2"
    write_hf_folder(checkpoint, tmp_path, dtype="bfloat16")
    for tensor, value in tensors(lab / "llama").items():
        assert tensors(tmp_path)[tensor].equal(value.bfloat16())
    config = json.loads((tmp_path / "config.json").read_text())
    original = json.loads((lab / "llama" / "config.json").read_text())
    assert config == original | {"dtype": "bfloat16"}
