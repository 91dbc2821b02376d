"""Everything that can be wrong with a run, found before a process is started, all at once; and its arithmetic.

Nothing here needs a GPU or torch.distributed.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from megatron_ext.artifacts import Artifact
from megatron_ext.config import ParallelConfig, RunConfig
from megatron_ext.data.blend import plan_blend
from megatron_ext.errors import UserError
from megatron_ext.training.throughput import train_flops_per_token


def check_run(config: RunConfig, world_size: int | None = None) -> None:
    """Raise one UserError that lists every problem of the run with its mend.

    Args:
        world_size: number of processes; None takes it from torchrun's environment.
    """
    if world_size is None:
        world_size = int(os.environ.get("WORLD_SIZE", "1"))
    problems = _layout_problems(config, world_size) + _model_problems(config) + _data_problems(config)
    if problems:
        raise UserError("the run cannot start:\n" + "\n".join(f"  - {problem}" for problem in problems))


def check_layout(parallel: ParallelConfig, hf_folder: Path) -> None:
    """Raise UserError when the model cannot be split over the layout."""
    problems = _split_problems(parallel, _hf_config(hf_folder))
    if problems:
        raise UserError("; ".join(problems))


def source_sizes(config: RunConfig) -> dict[str, int]:
    """Tokens of each source's training split."""
    return {name: Artifact.open(source.path, kind="tokenized").counts["train"]["tokens"]
            for name, source in config.data.sources.items()}


def describe_run(config: RunConfig) -> str:
    """The run's arithmetic, as lines."""
    plan = plan_blend(config, source_sizes(config))
    train, seq_length = config.train, config.data.seq_length
    tokens = config.train_iters * config.tokens_per_iteration
    flops = tokens * train_flops_per_token(_hf_config(config.model.hf_folder), seq_length)
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
        hf_config = _hf_config(config.model.hf_folder)
    except UserError as error:
        return [f"model.hf_folder: {error}"]
    problems = _split_problems(config.parallel, hf_config)
    longest = hf_config.get("max_position_embeddings")
    if longest and config.data.seq_length > longest:
        problems.append(f"data.seq_length {config.data.seq_length} is above the model's max_position_embeddings "
                        f"{longest}")
    return problems


def _split_problems(parallel: ParallelConfig, hf_config: dict[str, Any]) -> list[str]:
    tp, pp = parallel.tensor_model_parallel_size, parallel.pipeline_model_parallel_size
    heads = hf_config["num_attention_heads"]
    kv_heads = hf_config.get("num_key_value_heads") or heads
    layers = hf_config["num_hidden_layers"]
    problems = []
    if heads % tp or kv_heads % tp:
        allowed = [size for size in range(1, kv_heads + 1) if heads % size == 0 and kv_heads % size == 0]
        problems.append(f"tensor_model_parallel_size {tp} does not divide the model's {heads} attention heads and "
                        f"{kv_heads} key/value heads; possible here: {', '.join(map(str, allowed))}")
    chunks = pp * (parallel.virtual_pipeline_model_parallel_size or 1)
    if layers % chunks:
        problems.append(f"{layers} layers cannot be split evenly over {chunks} pipeline stages "
                        "(pipeline_model_parallel_size x virtual_pipeline_model_parallel_size)")
    return problems


def _data_problems(config: RunConfig) -> list[str]:
    problems, sizes = [], {}
    vocab_size = _vocab_size(config)
    folders = {f"data.sources.{name}": source.path for name, source in config.data.sources.items()}
    folders |= {f"validation.sources.{name}": path for name, path in config.validation.sources.items()}
    for key, folder in folders.items():
        try:
            artifact = Artifact.open(folder, kind="tokenized")
        except UserError as error:
            problems.append(f"{key}: {error}")
            continue
        if vocab_size and artifact.counts["vocab_size"] > vocab_size:
            problems.append(f"{key}: tokenized with {artifact.counts['vocab_size']:,} token ids, the model has "
                            f"{vocab_size:,}: tokenize with the model's own tokenizer")
        sizes[key] = artifact.counts["train"]["tokens"]
    known = {name: sizes.get(f"data.sources.{name}") for name in config.data.sources}
    if None not in known.values():
        try:
            plan_blend(config, known)
        except UserError as error:
            problems.append(str(error))
    return problems


def _vocab_size(config: RunConfig) -> int | None:
    try:
        return _hf_config(config.model.hf_folder)["vocab_size"]
    except UserError:
        return None


def _hf_config(hf_folder: Path) -> dict[str, Any]:
    path = hf_folder / "config.json"
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); give a Hugging Face model folder, e.g. one "
                        "made by tools.fetch_model") from None
