"""What test_weights.py runs under torchrun."""

from __future__ import annotations

from pathlib import Path

from megatron_ext.config import ModelConfig, ParallelConfig
from megatron_ext.model.hf_config import read_architecture
from megatron_ext.model.hf_export import HF_METADATA
from megatron_ext.model.hf_files import copy_hf_metadata

LAYOUTS = [(1, 1), (2, 1), (1, 2), (2, 2)]


def import_and_check(folder: str, models: list[str], deep_model: str, few_groups: str) -> None:
    """All that needs four processes, in one launch."""
    for tp, pp in LAYOUTS:
        parallel = ParallelConfig(tensor_model_parallel_size=tp, pipeline_model_parallel_size=pp)
        _lay_out(parallel)
        for model in models:
            _load_prove_and_save(Path(folder), model, parallel)
    sequence_and_virtual_pipeline_parity(Path(deep_model))
    wrong_at_two_ranks_alone(Path(folder) / "llama")
    four_ranks = ParallelConfig(tensor_model_parallel_size=4)
    _lay_out(four_ranks)
    _load_prove_and_save(Path(folder), few_groups, four_ranks)
    gradients_of_ranks_that_share_a_group(Path(folder) / few_groups, four_ranks)


def _load_prove_and_save(folder: Path, model: str, parallel: ParallelConfig) -> None:
    """Read the weights, prove parity, save the layout's checkpoint; the streamed checkpoint must load as the same."""
    import torch
    import torch.distributed as dist
    from megatron.core import dist_checkpointing

    from megatron_ext.model.checkpoints import load_model, sharded_model_state
    from megatron_ext.model.gpt import build_model
    from megatron_ext.model.hf_weights import load_hf_weights
    from megatron_ext.model.megatron_parity import check_chunks

    chunks = build_model(ModelConfig(hf_folder=folder / model, dtype="float32"), parallel)
    load_hf_weights(chunks, folder / model)
    check_chunks(chunks, folder / model, "float32", 64).require()
    for chunk in chunks:
        chunk.to(getattr(torch, read_architecture(folder / model).dtype))

    target = folder / f"{model}-{parallel.tensor_model_parallel_size}-{parallel.pipeline_model_parallel_size}"
    if dist.get_rank() == 0:
        target.mkdir()
        copy_hf_metadata(folder / model, target / HF_METADATA)
    dist.barrier()
    dist_checkpointing.save(sharded_model_state(chunks), str(target))

    direct = [parameter.detach().clone() for chunk in chunks for parameter in chunk.parameters()]
    for chunk in chunks:
        for parameter in chunk.parameters():
            torch.nn.init.zeros_(parameter)
    load_model(chunks, folder / f"{model}-streamed")
    for expected, parameter in zip(direct, (p for chunk in chunks for p in chunk.parameters()), strict=True):
        assert parameter.equal(expected)


def sequence_and_virtual_pipeline_parity(model: Path) -> None:
    """Parity under sequence and context parallelism, and with two virtual stages on each of two pipeline ranks."""
    for parallel in (
        ParallelConfig(tensor_model_parallel_size=2, context_parallel_size=2, sequence_parallel=True),
        ParallelConfig(pipeline_model_parallel_size=2, context_parallel_size=2),
        ParallelConfig(tensor_model_parallel_size=2, pipeline_model_parallel_size=2, sequence_parallel=True),
        ParallelConfig(tensor_model_parallel_size=2, pipeline_model_parallel_size=2,
                       virtual_pipeline_model_parallel_size=2),
    ):
        _prove(model, parallel, 64)


def wrong_at_two_ranks_alone(model: Path) -> None:
    """Gate and up split as one tensor: right on one rank, wrong on two, and parity says so."""
    from unittest.mock import patch

    import torch

    from megatron_ext.model.gpt import build_model
    from megatron_ext.model.hf_weights import load_hf_weights
    from megatron_ext.model.mappings import GateUp
    from megatron_ext.model.megatron_parity import check_chunks

    def split_as_one(row, parts, shard, num_rows, architecture):
        whole = torch.cat([part[:] for part in parts])
        return whole[shard.span(len(whole))]

    for tp in (1, 2):
        parallel = ParallelConfig(tensor_model_parallel_size=tp)
        _lay_out(parallel)
        chunks = build_model(ModelConfig(hf_folder=model, dtype="float32"), parallel)
        with patch.object(GateUp, "to_megatron", split_as_one):
            load_hf_weights(chunks, model)
        assert check_chunks(chunks, model, "float32", 64).passed == (tp == 1)


def _prove(model: Path, parallel: ParallelConfig, num_positions: int) -> None:
    import torch.distributed as dist

    from megatron_ext.model.gpt import build_model
    from megatron_ext.model.hf_weights import load_hf_weights
    from megatron_ext.model.megatron_parity import check_chunks

    _lay_out(parallel)
    chunks = build_model(ModelConfig(hf_folder=model, dtype="float32"), parallel)
    load_hf_weights(chunks, model)
    verdict = check_chunks(chunks, model, "float32", num_positions)
    if dist.get_rank() == 0:
        print(verdict.line("parity"), flush=True)
    verdict.require()


def parity_under(model: str, layouts: list[dict[str, int]], num_positions: int) -> None:
    """Parity of one model under several layouts, each of as many processes as were started or fewer by a factor."""
    for layout in layouts:
        _prove(Path(model), ParallelConfig(**layout), num_positions)


def gradients_of_ranks_that_share_a_group(model: Path, parallel: ParallelConfig) -> None:
    """The gradient of each rank's query, key and value rows is that of transformers."""
    import torch
    from megatron.core import parallel_state
    from transformers import AutoModelForCausalLM

    from megatron_ext.model.gpt import build_model
    from megatron_ext.model.hf_weights import load_hf_weights
    from megatron_ext.model.mappings import QKV, Shard

    [chunk] = build_model(ModelConfig(hf_folder=model, dtype="float32"), parallel)
    load_hf_weights([chunk], model)
    tokens = torch.arange(33)[None] % 131
    chunk(tokens[:, :-1], torch.arange(32)[None], None, labels=tokens[:, 1:]).sum().backward()
    reference = AutoModelForCausalLM.from_pretrained(model)
    logits = reference(tokens[:, :-1]).logits
    torch.nn.functional.cross_entropy(logits[0], tokens[0, 1:], reduction="sum").backward()
    shard = Shard(parallel_state.get_tensor_model_parallel_rank(), parallel.tensor_model_parallel_size)
    for layer, expected in zip(chunk.decoder.layers, reference.model.layers, strict=True):
        attention, found = expected.self_attn, layer.self_attention.linear_qkv
        for kind in ("weight", "bias"):
            parts = [getattr(linear, kind).grad for linear in (attention.q_proj, attention.k_proj, attention.v_proj)]
            gradient = getattr(found, kind).grad
            wanted = QKV("q", "k", "v").to_megatron(parts, shard, len(gradient), chunk.architecture)
            torch.testing.assert_close(gradient, wanted, rtol=1e-3, atol=1e-4)


def _lay_out(parallel: ParallelConfig) -> None:
    """Join the groups of a layout; those of the layout before are left."""
    from megatron_ext.model.parallel import initialize_parallel

    initialize_parallel(parallel)
