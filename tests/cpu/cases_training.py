"""What test_grid.py runs under torchrun: several short runs in one launch, each with its own layout."""

from __future__ import annotations

import torch

from megatron_ext.config import RunConfig
from megatron_ext.data.dataset import Sample
from megatron_ext.settings import overlay, validate


def runs(base: dict, variants: dict[str, dict]) -> None:
    """Train once for each variant of the base settings; `output` gets the variant's name appended.

    What follows a `#` in a name is no part of the folder: the same run again.
    """
    from megatron_ext.model.parallel import initialize_parallel, shut_down_parallel
    from megatron_ext.training.loop import train
    from megatron_ext.training.preflight import check_run

    for name, changes in variants.items():
        settings = overlay(base, changes)
        settings["output"] = f"{base['output']}/{name.partition('#')[0]}"
        config = validate(RunConfig, settings, where=name)
        check_run(config)
        initialize_parallel(config.parallel)
        train(config)
    shut_down_parallel()


def held_out(variants: dict[str, dict]) -> None:
    """Measure each variant: settings of the stage, with its `output`."""
    from pathlib import Path

    from megatron_ext.model.parallel import initialize_parallel, shut_down_parallel
    from megatron_ext.training.held_out import measure_held_out
    from megatron_ext.training.settings import HeldOutSettings

    for settings in variants.values():
        output = Path(settings.pop("output"))
        config = validate(HeldOutSettings, settings, where="held out")
        initialize_parallel(config.parallel)
        measure_held_out(config, output)
    shut_down_parallel()


def packed_sample(parts: list) -> Sample:
    """Documents, each with one token more than is shown, as a sample that predicts nothing across their borders."""
    import numpy as np

    masks = [np.append(np.ones(len(part) - 2), 0) for part in parts]
    return Sample(np.concatenate([part[:-1] for part in parts]), np.concatenate([part[1:] for part in parts]),
                  np.concatenate(masks).astype(np.float32),
                  np.concatenate([np.full(len(part) - 1, number) for number, part in enumerate(parts)]))


def packed_pair_is_two_documents(model: str) -> None:
    """Loss of a sample of two documents, masked, against each document alone; for every attention kernel of a CPU."""
    import numpy as np
    from torch.nn.attention import SDPBackend, sdpa_kernel

    from megatron_ext.config import DataConfig, ModelConfig, ParallelConfig
    from megatron_ext.model.distributed import single_process
    from megatron_ext.model.gpt import build_model
    from megatron_ext.model.hf_weights import load_hf_weights
    from megatron_ext.training.batch import HostBatch, forward

    random = np.random.default_rng(0)
    lengths = [11, 21]
    documents = [random.integers(2, 128, length + 1) for length in lengths]

    def losses(parts: list[np.ndarray], data: DataConfig) -> torch.Tensor:
        batch = HostBatch.of(range(1), [packed_sample(parts)], data).for_stage(chunk)
        with torch.no_grad():
            return (forward(chunk, batch) * batch.mask)[0]

    with single_process():
        chunk, = build_model(ModelConfig(hf_folder=model, dtype="float32"), ParallelConfig())
        load_hf_weights([chunk], model)
        for kernel in (SDPBackend.MATH, SDPBackend.FLASH_ATTENTION):
            with sdpa_kernel(kernel):
                alone = torch.cat([losses([document], DataConfig(sources={})) for document in documents])
                apart = losses(documents, DataConfig(sources={}, document_mask=True, reset_positions=True))
                mixed = losses(documents, DataConfig(sources={}))
            torch.testing.assert_close(apart, alone, rtol=1e-5, atol=1e-5)
            assert not torch.allclose(mixed, alone, atol=1e-3)
            # A rotary embedding knows distances alone: under the mask it does not matter where a document begins.
            with sdpa_kernel(kernel):
                unmoved = losses(documents, DataConfig(sources={}, document_mask=True))
            torch.testing.assert_close(unmoved, alone, rtol=1e-5, atol=1e-5)


def reset_positions_are_those_of_transformers(model: str) -> None:
    """Positions that begin anew in each document, without a mask, against transformers with the same position ids."""
    import numpy as np
    from transformers import AutoModelForCausalLM

    from megatron_ext.config import DataConfig, ModelConfig, ParallelConfig
    from megatron_ext.model.distributed import single_process
    from megatron_ext.model.gpt import build_model
    from megatron_ext.model.hf_weights import load_hf_weights
    from megatron_ext.training.batch import HostBatch, forward

    tokens = np.random.default_rng(1).integers(2, 128, (2, 33))
    numbers = np.stack([np.repeat([0, 1, 2], [5, 20, 7]), np.repeat([0, 1], [31, 1])])
    samples = [Sample(row[:-1], row[1:], np.ones(32, np.float32), number)
               for row, number in zip(tokens, numbers, strict=True)]
    with single_process(), torch.no_grad():
        chunk, = build_model(ModelConfig(hf_folder=model, dtype="float32"), ParallelConfig())
        load_hf_weights([chunk], model)
        batch = HostBatch.of(range(2), samples, DataConfig(sources={}, reset_positions=True)).for_stage(chunk)
        assert batch.position_ids.tolist()[0] == [*range(5), *range(20), *range(7)]
        ours = forward(chunk, batch)
        theirs = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        # A mask of our own: transformers would read fresh positions as packed documents and mask them apart.
        causal = torch.full((32, 32), -torch.inf).triu(1).expand(2, 1, 32, 32)
        logits = theirs(batch.tokens, position_ids=batch.position_ids, attention_mask=causal).logits
        expected = torch.nn.functional.cross_entropy(logits.transpose(1, 2), batch.labels, reduction="none")
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


def what_gloo_gets_wrong_is_avoided() -> None:
    """Sums of strided tensors; options of the interleaved schedule that lose data without an error."""
    from megatron_ext.config import ModelConfig, ParallelConfig
    from megatron_ext.model.gpt import _platform_options
    from megatron_ext.model.parallel import initialize_parallel, shut_down_parallel, sum_over_data_parallel

    initialize_parallel(ParallelConfig())
    strided = torch.arange(6, dtype=torch.float64).reshape(2, 3).T
    assert not strided.is_contiguous()
    torch.testing.assert_close(sum_over_data_parallel(strided), 2 * strided.contiguous())
    shut_down_parallel()
    interleaved = ParallelConfig(pipeline_model_parallel_size=2, virtual_pipeline_model_parallel_size=2)
    options = _platform_options(ModelConfig(hf_folder="unused"), interleaved)
    for name in ("overlap_p2p_comm", "batch_p2p_comm", "deallocate_pipeline_outputs"):
        assert options.get(name, False) is False
