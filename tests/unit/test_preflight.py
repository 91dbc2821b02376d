"""A run's problems are found before a process starts, all at once; its arithmetic adds up."""

import json
from pathlib import Path
from unittest.mock import patch

import pytest

from megatron_ext.config import RunConfig
from megatron_ext.errors import UserError
from megatron_ext.model.hf_config import parse_hf_config
from megatron_ext.settings import load_settings, overlay, validate
from megatron_ext.training import preflight
from megatron_ext.training.memory import count_parameters, estimate_memory
from megatron_ext.training.preflight import check_run, describe_run
from tests.cpu.tiny import make_tokenized

LLAMA = {"architectures": ["LlamaForCausalLM"], "vocab_size": 128, "hidden_size": 64, "intermediate_size": 96,
         "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text(json.dumps(LLAMA))
    return {
        "output": str(folder / "out"), "model": {"hf_folder": str(folder / "model")},
        "data": {"seq_length": 32, "sources": {"a": {"path": str(make_tokenized(folder / "a", 0)), "fill": True}}},
        "train": {"budget_tokens": 4 * 8 * 32, "global_batch_size": 8},
    }


def problems(base, changes, world_size=1):
    with pytest.raises(UserError) as refusal:
        check_run(validate(RunConfig, overlay(base, changes), where="test"), world_size)
    return str(refusal.value)


BROKEN = {
    "layout": ({"parallel": {"tensor_model_parallel_size": 3, "virtual_pipeline_model_parallel_size": 2},
                "data": {"seq_length": 256}}, 4,
               ["4 processes are no multiple of tensor_model_parallel_size 3", "possible here: 1, 2",
                "virtual_pipeline_model_parallel_size needs pipeline_model_parallel_size of 2",
                "seq_length 256 is above the model's max_position_embeddings 128"]),
    "batch": ({"train": {"global_batch_size": 6, "micro_batch_size": 4}, "optimizer": {"min_lr": 1.0}}, 1,
              ["global_batch_size 6 is no multiple of micro_batch_size 4", "min_lr 1 is above optimizer.lr 2e-05"]),
    "sequence parallel": ({"parallel": {"sequence_parallel": True}, "schedule": {"warmup_iters": 100}}, 1,
                          ["sequence_parallel needs tensor_model_parallel_size of 2 or more",
                           "warm-up takes 800 samples, the whole run 32"]),
    "context parallel": ({"parallel": {"context_parallel_size": 2}, "data": {"seq_length": 30},
                          "schedule": {"warmup_init_lr": 1.0}}, 2,
                         ["seq_length 30 must be a multiple of 2 x context_parallel_size = 4",
                          "warmup_init_lr 1 is above optimizer.lr"]),
    "pipeline": ({"parallel": {"pipeline_model_parallel_size": 3}, "optimizer": {"min_lr": 1.0}}, 3,
                 ["4 layers cannot be split evenly over 3 pipeline stages", "min_lr"]),
    "interleaved": ({"parallel": {"pipeline_model_parallel_size": 2, "virtual_pipeline_model_parallel_size": 2},
                     "train": {"global_batch_size": 7}}, 2,
                    ["the interleaved schedule needs micro-batches"]),
    "overlap": ({"parallel": {"overlap_param_gather": True, "use_distributed_optimizer": False},
                 "model": {"fp8": True}}, 1,
                ["overlap_param_gather needs use_distributed_optimizer", "fp8 needs model.layer_implementation"]),
    "transformer engine": ({"model": {"layer_implementation": "transformer_engine"},
                            "data": {"document_mask": True}, "parallel": {"context_parallel_size": 2}}, 2,
                           ["the package transformer_engine is not installed; make gpu (requirements-gpu.txt), or",
                            "document_mask under transformer_engine needs parallel.context_parallel_size 1"]),
    "positions": ({"model": {"layer_implementation": "transformer_engine"}, "data": {"reset_positions": True}}, 1,
                  ["the package transformer_engine is not", "reset_positions without data.document_mask needs"]),
    "data": ({"data": {"sources": {"b": {"path": "absent", "epochs": 1}}},
              "validation": {"sources": {"c": "absent too"}}}, 1,
             ["data.sources.b.path: absent", "validation.sources.c: absent too"]),
    "amounts": ({"train": {"budget_tokens": 10**7}, "schedule": {"style": "WSD", "warmup_fraction": 0.6,
                                                                 "decay_fraction": 0.6}}, 1,
                ["over its max_epochs of 1", "are longer than the run"]),
}


@pytest.mark.parametrize("name", BROKEN)
def test_all_problems_are_told_at_once(base, name):
    changes, world_size, expected = BROKEN[name]
    said = problems(base, changes, world_size)
    for problem in expected:
        assert problem in said
    assert said.count("\n  - ") >= len(expected)


def test_a_setting_in_two_units_is_refused(base):
    with pytest.raises(UserError, match="warmup_fraction and warmup_tokens say the same in two units"):
        validate(RunConfig, overlay(base, {"schedule": {"warmup_fraction": 0.1, "warmup_tokens": 1000}}), where="test")


@pytest.mark.parametrize(("schedule", "samples"), [
    ({}, 10), ({"warmup_fraction": 0.5}, 100), ({"warmup_tokens": 32 * 24}, 24), ({"warmup_iters": 3}, 24)])
def test_warm_up_in_every_unit(base, schedule, samples):
    config = validate(RunConfig, overlay(base, {"train": {"budget_tokens": 200 * 32}, "schedule": schedule}),
                      where="test")
    assert config.warmup_samples == samples


def llama(**changes):
    return parse_hf_config({**LLAMA, "vocab_size": 32000, "max_position_embeddings": 4096, **changes})


LLAMA_2_7B = llama(hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32,
                   num_key_value_heads=32)
TINYLLAMA = llama(hidden_size=2048, intermediate_size=5632, num_hidden_layers=22, num_attention_heads=32)


def test_parameters_are_those_of_the_published_models():
    assert count_parameters(LLAMA_2_7B) == 6_738_415_616
    assert count_parameters(llama(hidden_size=2048, intermediate_size=5632, num_hidden_layers=22,
                                  num_attention_heads=32, num_key_value_heads=4)) == 1_100_048_384


def test_memory_follows_the_layout(base):
    def memory(dp=1, **changes):
        return estimate_memory(validate(RunConfig, overlay(base, changes), where="test"), LLAMA_2_7B, dp)

    one = memory()
    # bf16 weights, fp32 gradients, fp32 main weights and two moments: 18 bytes a parameter.
    assert one.weights + one.gradients + one.optimizer == 18 * one.num_parameters
    assert memory(dp=4).optimizer == one.optimizer // 4
    assert memory(dp=4, parallel={"use_distributed_optimizer": False}).optimizer == one.optimizer
    halved = memory(parallel={"tensor_model_parallel_size": 2})
    assert halved.num_parameters == pytest.approx(one.num_parameters / 2)
    assert one.activations / 2 < halved.activations < one.activations  # norms and residuals are not shared
    assert memory(parallel={"tensor_model_parallel_size": 2, "sequence_parallel": True}).activations == pytest.approx(
        one.activations / 2, rel=1e-6)
    assert memory(model={"recompute_activations": True}).activations < one.activations / 10
    assert memory(train={"micro_batch_size": 2}).activations == 2 * one.activations


def test_the_arithmetic_is_told(base):
    said = describe_run(validate(RunConfig, base, where="test"), 2)
    for line in ("iteration: 8 samples x 32 tokens = 256 tokens", "run: 4 iterations = 1,024 tokens",
                 "layout: 2 processes = tp 1 x pp 1 x dp 2; each runs 4 micro-batches of 1", "fits an H100",
                 "GiB of disk", "device-hours"):
        assert line in said


@pytest.mark.parametrize("name", ["tinyllama_1.1b", "llama2_7b"])
def test_base_files_for_gpus_train_transformer_engines_layers_with_one_line_where_it_is_not(base, name):
    path = Path(__file__).parents[2] / "examples" / "base" / f"{name}.yaml"
    config = load_settings(RunConfig, path, [
        "output=unused", f"model.hf_folder={base['model']['hf_folder']}", "data.sources={}"])
    assert config.model.layer_implementation == "transformer_engine"
    with patch.object(preflight.importlib.util, "find_spec", lambda module: None), pytest.raises(UserError) as error:
        check_run(config, world_size=8)
    assert str(error.value).count("transformer_engine is not installed; make gpu (requirements-gpu.txt), or") == 1
