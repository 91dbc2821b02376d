"""Everything that can be wrong with a run, found before a process is started, all at once; and its arithmetic.

Nothing here needs a GPU or torch.distributed.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from megatron_ext.artifacts import Artifact
from megatron_ext.config import RunConfig
from megatron_ext.data.blend import plan_blend
from megatron_ext.errors import UserError
from megatron_ext.model.hf_config import layout_problems, read_architecture
from megatron_ext.training.throughput import train_flops_per_token


def check_run(config: RunConfig, world_size: int | None = None, data_is_there: bool = True) -> None:
    """Raise one UserError that lists every problem of the run with its mend.

    Args:
        world_size: number of processes; None takes it from torchrun's environment.
        data_is_there: False checks what can be known before the data are made.
    """
    if world_size is None:
        world_size = int(os.environ.get("WORLD_SIZE", "1"))
    problems = _layout_problems(config, world_size) + _model_problems(config)
    problems += _data_problems(config) if data_is_there else []
    if problems:
        raise UserError("the run cannot start:\n" + "\n".join(f"  - {problem}" for problem in problems))


def source_sizes(config: RunConfig) -> dict[str, int]:
    """Tokens of each source's training split."""
    return {name: Artifact.open(source.path, kind="tokenized").counts["train"]["tokens"]
            for name, source in config.data.sources.items()}


def describe_run(config: RunConfig) -> str:
    """The run's arithmetic, as lines."""
    plan = plan_blend(config, source_sizes(config))
    train, seq_length = config.train, config.data.seq_length
    tokens = config.train_iters * config.tokens_per_iteration
    flops = tokens * train_flops_per_token(read_architecture(config.model.hf_folder), seq_length)
    lines = [
        f"run folder: {config.output}",
        f"iteration: {train.global_batch_size} samples x {seq_length:,} tokens = "
        f"{config.tokens_per_iteration:,} tokens",
        f"run: {config.train_iters:,} iterations = {tokens:,} tokens (budget {train.budget_tokens:,}), "
        f"{flops:.3g} model FLOPs",
    ]
    for source in plan.sources:
        lines.append(f"source {source.name}: {source.num_samples * seq_length:,} tokens, {source.epochs:.2f} epochs of "
                     f"{source.available_tokens:,}, {100 * source.num_samples / plan.num_samples:.1f} % of the samples")
    return "\n".join(lines)


def _layout_problems(config: RunConfig, world_size: int) -> list[str]:
    parallel, train = config.parallel, config.train
    tp, pp = parallel.tensor_model_parallel_size, parallel.pipeline_model_parallel_size
    problems = []
    if world_size % (tp * pp):
        problems.append(f"{world_size} processes are no multiple of tensor_model_parallel_size {tp} x "
                        f"pipeline_model_parallel_size {pp} = {tp * pp}")
    else:
        dp = world_size // (tp * pp)
        if train.global_batch_size % (train.micro_batch_size * dp):
            problems.append(f"train.global_batch_size {train.global_batch_size} is no multiple of micro_batch_size "
                            f"{train.micro_batch_size} x data-parallel size {dp}")
    if parallel.virtual_pipeline_model_parallel_size and pp == 1:
        problems.append("parallel.virtual_pipeline_model_parallel_size needs pipeline_model_parallel_size of 2 or more")
    if parallel.sequence_parallel and tp == 1:
        problems.append("parallel.sequence_parallel needs tensor_model_parallel_size of 2 or more")
    if parallel.sequence_parallel and config.data.seq_length % tp:
        problems.append(f"data.seq_length {config.data.seq_length} must be a multiple of tensor_model_parallel_size "
                        f"{tp} with sequence_parallel")
    if parallel.overlap_param_gather and not parallel.use_distributed_optimizer:
        problems.append("parallel.overlap_param_gather needs use_distributed_optimizer")
    if config.optimizer.min_lr > config.optimizer.lr:
        problems.append(f"optimizer.min_lr {config.optimizer.min_lr:g} is above optimizer.lr {config.optimizer.lr:g}")
    return problems


def _model_problems(config: RunConfig) -> list[str]:
    try:
        architecture = read_architecture(config.model.hf_folder)
    except UserError as error:
        return [f"model.hf_folder: {error}"]
    problems = layout_problems(architecture, config.parallel)
    if config.data.seq_length > architecture.max_sequence_length:
        problems.append(f"data.seq_length {config.data.seq_length} is above the model's max_position_embeddings "
                        f"{architecture.max_sequence_length}")
    for key, artifact in _tokenized_artifacts(config).items():
        vocab_size = artifact.counts["vocab_size"]
        if vocab_size > architecture.vocab_size:
            problems.append(f"{key}: tokenized with {vocab_size:,} token ids, the model has "
                            f"{architecture.vocab_size:,}: tokenize with the model's own tokenizer")
    return problems


def _data_problems(config: RunConfig) -> list[str]:
    problems = []
    for key, folder in _data_folders(config).items():
        try:
            Artifact.open(folder, kind="tokenized")
        except UserError as error:
            problems.append(f"{key}: {error}")
    if not problems:
        try:
            plan_blend(config, source_sizes(config))
        except UserError as error:
            problems.append(str(error))
    return problems


def _data_folders(config: RunConfig) -> dict[str, Path]:
    """Settings key -> folder of everything tokenized that the run reads."""
    folders = {f"data.sources.{name}.path": source.path for name, source in config.data.sources.items()}
    return folders | {f"validation.sources.{name}": path for name, path in config.validation.sources.items()}


def _tokenized_artifacts(config: RunConfig) -> dict[str, Artifact]:
    """Those of them that are whole."""
    artifacts = {}
    for key, folder in _data_folders(config).items():
        with suppress(UserError):
            artifacts[key] = Artifact.open(folder, kind="tokenized")
    return artifacts
