"""What runs in the Python of Transformer Engine: its layers beside megatron-core's local ones."""

from __future__ import annotations

import json
import os
from contextlib import contextmanager
from pathlib import Path

import torch

from megatron_ext.config import ModelConfig, ParallelConfig

IMPLEMENTATIONS = ("local", "transformer_engine")


def one_process(folder: str, models: list[str], loaded: list[str], packed: str) -> None:
    """All that needs no second process, in one launch."""
    families(Path(folder), models)
    cross_loading(Path(folder), loaded)
    a_wrong_mapping_fails(Path(folder) / models[0])
    packed_pairs(packed, pp=1)


def families(folder: Path, models: list[str]) -> None:
    """For each model family: the parameters' names, what is stored, logits, losses and gradients of both."""
    from megatron_ext.model.distributed import single_process
    from tests.te.kernels import CALLS

    with single_process():
        for name in models:
            local, te = (_build(folder / name, kind) for kind in IMPLEMENTATIONS)
            _same_names(local, te)
            CALLS.clear()
            _same_logits(te, folder / name)
            _same_gradients(local, te)
            assert CALLS["rmsnorm_bwd"] and CALLS["fused_rope_backward"] and CALLS["generic_gemm"], CALLS


def _build(hf_folder: Path, implementation: str, parallel: ParallelConfig | None = None) -> list:
    from megatron_ext.model.gpt import build_model
    from megatron_ext.model.hf_weights import load_hf_weights

    model = ModelConfig(hf_folder=hf_folder, dtype="float32", layer_implementation=implementation)
    chunks = build_model(model, parallel or ParallelConfig())
    load_hf_weights(chunks, hf_folder)
    return chunks


def _same_names(local: list, te: list) -> None:
    from megatron_ext.model.hf_weights import checkpoint_name

    shapes = [{checkpoint_name(name): parameter.shape for name, parameter in chunk.named_parameters()}
              for chunk in (local[0], te[0])]
    assert shapes[0] == shapes[1]
    tensors, objects = zip(*(_stored(chunks) for chunks in (local, te)), strict=True)
    assert tensors[0] == tensors[1]
    assert objects[0] <= objects[1]
    assert all("norm._extra_state" in key for key in objects[1] - objects[0]), objects[1] - objects[0]


def _stored(chunks: list) -> tuple[dict[str, tuple[int, ...]], set[str]]:
    """Key and shape of every tensor of a checkpoint, and the keys of what is no tensor."""
    from megatron.core.dist_checkpointing.dict_utils import nested_values
    from megatron.core.dist_checkpointing.mapping import ShardedObject, apply_factories

    from megatron_ext.model.checkpoints import sharded_model_state

    state = sharded_model_state(chunks)
    apply_factories(state)
    values = list(nested_values(state))
    objects = {value.unique_key for value in values if isinstance(value, ShardedObject)}
    return {value.key: value.global_shape for value in values if not isinstance(value, ShardedObject)}, objects


def _same_logits(te: list, hf_folder: Path) -> None:
    """With exact products as tight as local; rounded as on a GPU, within the limits of that and no tighter ones."""
    from megatron_ext.model.megatron_parity import check_chunks
    from megatron_ext.model.parity import LIMITS

    exact = check_chunks(te, hf_folder, "float32", 64)
    assert exact.max_abs_difference < LIMITS["float32"].max_abs_difference, exact
    with as_on_a_gpu():
        rounded = check_chunks(te, hf_folder, "float32", 64)
    assert rounded.dtype == "TF32"
    assert rounded.require().max_abs_difference > LIMITS["float32"].max_abs_difference, rounded


@contextmanager
def as_on_a_gpu():
    """Products of float32 matrices in TF32."""
    from tests.te.kernels import TF32

    os.environ[TF32] = "1"
    try:
        yield
    finally:
        del os.environ[TF32]


def _same_gradients(local: list, te: list) -> None:
    from megatron_ext.model.hf_weights import checkpoint_name

    tokens = torch.arange(66).view(2, 33) * 7 % 131
    losses, gradients = [], []
    for chunk, in (local, te):
        chunk.train()
        loss = chunk(tokens[:, :-1], None, None, labels=tokens[:, 1:])
        loss.sum().backward()
        losses.append(loss.detach())
        gradients.append({checkpoint_name(name): parameter.grad for name, parameter in chunk.named_parameters()})
    torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-5)
    for name, expected in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], expected, rtol=1e-3, atol=1e-4, msg=name)


def cross_loading(folder: Path, models: list[str]) -> None:
    """Checkpoints of an import, of local layers and of Transformer Engine's load into both, every weight equal."""
    from megatron.core import dist_checkpointing

    from megatron_ext.model.checkpoints import load_model, sharded_model_state
    from megatron_ext.model.distributed import single_process
    from megatron_ext.model.hf_import import write_megatron_checkpoint

    with single_process():
        for name in models:
            hf_folder = folder / name
            saved = {kind: _build(hf_folder, kind) for kind in IMPLEMENTATIONS}
            places = {kind: hf_folder / f"saved_{kind}" for kind in (*IMPLEMENTATIONS, "import")}
            for place in places.values():
                place.mkdir()
            for kind in IMPLEMENTATIONS:
                dist_checkpointing.save(sharded_model_state(saved[kind]), str(places[kind]))
            write_megatron_checkpoint(hf_folder, places["import"])
            for place in places.values():
                for kind, (expected,) in saved.items():
                    chunks = _build(hf_folder, kind)
                    for parameter in chunks[0].parameters():
                        torch.nn.init.zeros_(parameter)
                    load_model(chunks, place)
                    for found, wanted in zip(chunks[0].parameters(), expected.parameters(), strict=True):
                        assert found.equal(wanted), (place, kind)


def a_wrong_mapping_fails(folder: Path) -> None:
    """Two key/value heads exchanged are no rounding, even by the limits of TF32."""
    from megatron_ext.model.distributed import single_process
    from megatron_ext.model.megatron_parity import check_chunks

    with single_process(), as_on_a_gpu():
        chunks = _build(folder, "transformer_engine")
        assert check_chunks(chunks, folder, "float32", 64).passed
        weight = chunks[0].decoder.layers[1].self_attention.linear_qkv.weight
        groups = weight.data.unflatten(0, (chunks[0].architecture.num_query_groups, -1))
        groups[:, -8:] = groups[:, -8:].flip(0).clone()
        assert not check_chunks(chunks, folder, "float32", 64).passed


def packed_pairs(model: str, pp: int) -> None:
    """Two samples of two documents each, in one micro-batch: their losses are those of the documents alone."""
    from megatron_ext.model.parallel import initialize_parallel, shut_down_parallel

    parallel = ParallelConfig(pipeline_model_parallel_size=pp)
    pairs = _pairs([(11, 21), (20, 12)])
    for implementation in IMPLEMENTATIONS:
        initialize_parallel(parallel)
        chunks = _build(Path(model), implementation, parallel)
        alone = [[_nats(chunks, [[document]], {})[0] for document in pair] for pair in pairs]
        apart = _nats(chunks, pairs, {"document_mask": True})
        again = _nats(chunks, pairs, {"document_mask": True, "reset_positions": True})
        mixed = _nats(chunks, pairs, {})
        if alone[0][0] is not None:  # the last stage
            expected = torch.stack([sum(pair) for pair in alone])
            torch.testing.assert_close(torch.stack(apart), expected, rtol=1e-5, atol=1e-4)
            torch.testing.assert_close(torch.stack(again), expected, rtol=1e-5, atol=1e-4)
            assert not torch.allclose(torch.stack(mixed), expected, rtol=1e-3)
    shut_down_parallel()


def _pairs(lengths: list[tuple[int, int]]) -> list:
    import numpy as np

    random = np.random.default_rng(0)
    return [[random.integers(2, 128, length + 1) for length in pair] for pair in lengths]


def _nats(chunks: list, samples: list, data: dict) -> list:
    """Summed loss of each sample, of all predictions within documents; None before the last pipeline stage.

    The samples are one micro-batch, through megatron-core's schedule, and the layers are those of the chunk.
    """
    from megatron.core.pipeline_parallel import get_forward_backward_func

    from megatron_ext.config import RunConfig
    from megatron_ext.settings import validate
    from megatron_ext.training.batch import HostBatch, schedule_shape
    from megatron_ext.training.step import forward_step
    from tests.cpu.cases_training import packed_sample

    config = validate(RunConfig, {
        "output": "unused", "train": {"budget_tokens": 1, "micro_batch_size": len(samples)},
        "model": {"hf_folder": "unused", "layer_implementation": chunks[0].config.transformer_impl},
        "data": {"sources": {}, "seq_length": sum(len(part) - 1 for part in samples[0]), **data}}, where="test")
    batch = HostBatch.of(range(len(samples)), [packed_sample(parts) for parts in samples], config.data,
                         config.packs_documents)
    with torch.no_grad():
        reports = get_forward_backward_func()(
            forward_step_func=forward_step, data_iterator=iter([batch]), model=chunks[0],
            num_microbatches=1, forward_only=True, **schedule_shape(config))
    return list(reports[0].sums[:, 0]) if reports else [None] * len(samples)


def kernels_of_runs(base: dict, variants: dict[str, dict]) -> None:
    """The runs, and which kernels of Transformer Engine they called."""
    from tests.cpu.cases_training import runs
    from tests.te.kernels import CALLS

    runs(base, variants)
    if os.environ["RANK"] == "0":
        print("kernels:", json.dumps(CALLS))
