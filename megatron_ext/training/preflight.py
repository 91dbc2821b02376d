"""Everything that can be wrong with a run, found before a process is started, all at once; and its arithmetic.

Nothing here needs a GPU or torch.distributed.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from megatron_ext.artifacts import Artifact
from megatron_ext.config import RunConfig
from megatron_ext.data.blend import BlendPlan
from megatron_ext.errors import UserError
from megatron_ext.model.hf_config import Architecture, layout_problems, read_architecture
from megatron_ext.training.memory import describe_memory
from megatron_ext.training.one_tokenizer import tokenizer_problems
from megatron_ext.training.throughput import train_flops_per_token
from megatron_ext.training.trunk import plan_run, trunk_problems

_H100_TFLOPS = 989.0
"""Peak of an H100 SXM in dense bfloat16."""
_ASSUMED_MFU = 0.40
"""Model FLOPs utilisation that GPU-hours are worked out with."""


def check_run(config: RunConfig, world_size: int | None = None) -> None:
    """Raise one UserError that lists every problem of the run with its mend.

    Args:
        world_size: number of processes; None takes it from torchrun's environment.
    """
    if world_size is None:
        world_size = int(os.environ.get("WORLD_SIZE", "1"))
    try:
        problems = planned_problems(config, world_size, read_architecture(config.model.hf_folder))
    except UserError as error:
        problems = [*planned_problems(config, world_size, None), f"model.hf_folder: {error}"]
    problems += _missing_packages(config) + (told := trunk_problems(config)) + _data_problems(config, not told)
    if problems:
        raise UserError("the run cannot start:\n" + "\n".join(f"  - {problem}" for problem in problems))


def planned_problems(config: RunConfig, world_size: int, architecture: Architecture | None) -> list[str]:
    """What is wrong with a run, as far as it can be known before its data are made.

    Args:
        architecture: of the model; None: not known yet.
    """
    problems = _layout_problems(config, world_size) + _schedule_problems(config) + _iteration_problems(config)
    return problems + (_model_problems(config, architecture) if architecture else [])


def source_sizes(config: RunConfig) -> dict[str, int]:
    """Tokens of each source's training split."""
    return {name: Artifact.open(source.path, kind="tokenized").counts["train"]["tokens"]
            for name, source in config.data.sources.items()}


def describe_run(config: RunConfig, world_size: int | None = None) -> str:
    """The run's arithmetic, as lines.

    Args:
        world_size: number of processes; None takes it from torchrun's environment.
    """
    if world_size is None:
        world_size = int(os.environ.get("WORLD_SIZE", "1"))
    plan = plan_run(config, source_sizes(config))
    train, seq_length = config.train, config.data.seq_length
    tokens = plan.num_samples * seq_length
    architecture = read_architecture(config.model.hf_folder)
    flops = tokens * train_flops_per_token(architecture, seq_length)
    dp = world_size // _model_parallel_size(config)
    peak = config.logging.peak_tflops or _H100_TFLOPS
    device_hours = flops / (peak * 1e12 * _ASSUMED_MFU) / 3600
    lines = [
        f"run folder: {config.output}",
        f"iteration: {train.global_batch_size} samples x {seq_length:,} tokens = "
        f"{config.tokens_per_iteration:,} tokens",
        f"run: {_describe_iterations(config, plan)} = {tokens:,} tokens (budget {train.budget_tokens:,}), "
        f"{flops:.3g} model FLOPs",
    ]
    for source in plan.sources:
        behind = f" after {source.num_before * seq_length:,} of the trunk's" if source.num_before else ""
        lines.append(
            f"source {source.name}: {source.num_samples * seq_length:,} tokens{behind}, {source.epochs:.2f} epochs of "
                     f"{source.available_tokens:,}, {100 * source.num_samples / plan.num_samples:.1f} % of the samples")
    lines.append(f"layout: {world_size} processes = {_layout(config)} x dp {dp}; each runs "
                 f"{train.global_batch_size // (train.micro_batch_size * dp)} micro-batches of "
                 f"{train.micro_batch_size} an iteration")
    lines.append(_describe_schedule(config))
    lines += describe_memory(config, architecture, dp)
    lines.append(f"time: {flops:.3g} FLOPs / ({peak:g} TFLOP/s x {100 * _ASSUMED_MFU:.0f} % MFU assumed) = "
                 f"{device_hours:,.1f} device-hours, {device_hours / world_size:,.1f} h on {world_size} devices")
    return "\n".join(lines)


def _describe_iterations(config: RunConfig, plan: BlendPlan) -> str:
    if config.start is None:
        return f"{config.train_iters:,} iterations"
    behind = plan.start // config.train.global_batch_size
    return (f"iterations {behind + 1:,} to {config.train_iters:,} (those before are the trunk's, "
            f"{config.start.checkpoint}{'' if config.start.optimizer else ', without its optimizer'})")


def _describe_schedule(config: RunConfig) -> str:
    """`schedule: WSD, warm-up 5.0 iterations to 0.0001, constant, linear decay over the last 10.0 to 1e-05`."""
    schedule, batch = config.schedule, config.train.global_batch_size
    warm_up = f"warm-up {config.warmup_samples / batch:,.1f} iterations to {config.optimizer.lr:g}"
    left = config.train_iters - config.warmup_samples / batch
    end = f"{config.optimizer.min_lr:g}"
    last = f"{config.decay_samples / batch:,.1f}"
    decay = {"WSD": f"constant, {schedule.wsd_decay_style} decay over the last {last} to {end}",
             "constant": "then no decay"}.get(schedule.style, f"{schedule.style} decay over {left:,.1f} to {end}")
    return f"schedule: {schedule.style}, {warm_up}, {decay}"


def _layout(config: RunConfig) -> str:
    parallel = config.parallel
    sizes = {"tp": parallel.tensor_model_parallel_size, "pp": parallel.pipeline_model_parallel_size,
             "cp": parallel.context_parallel_size}
    return " x ".join(f"{name} {size}" for name, size in sizes.items() if name != "cp" or size > 1)


def _model_parallel_size(config: RunConfig) -> int:
    parallel = config.parallel
    return (parallel.tensor_model_parallel_size * parallel.pipeline_model_parallel_size
            * parallel.context_parallel_size)


def _layout_problems(config: RunConfig, world_size: int) -> list[str]:
    parallel, train = config.parallel, config.train
    tp, pp, cp = (parallel.tensor_model_parallel_size, parallel.pipeline_model_parallel_size,
                  parallel.context_parallel_size)
    problems = []
    if world_size < 1:
        return [f"{world_size} processes: a run needs 1 or more"]
    if world_size % (tp * pp * cp):
        context = f" x context_parallel_size {cp}" if cp > 1 else ""
        problems.append(f"{world_size} processes are no multiple of tensor_model_parallel_size {tp} x "
                        f"pipeline_model_parallel_size {pp}{context} = {tp * pp * cp}")
    else:
        dp = world_size // (tp * pp * cp)
        if train.global_batch_size % (train.micro_batch_size * dp):
            problems.append(f"train.global_batch_size {train.global_batch_size} is no multiple of micro_batch_size "
                            f"{train.micro_batch_size} x data-parallel size {dp}")
        elif parallel.virtual_pipeline_model_parallel_size and (
                train.global_batch_size // (train.micro_batch_size * dp) % pp):
            problems.append(f"the interleaved schedule needs micro-batches (train.global_batch_size "
                            f"{train.global_batch_size} / micro_batch_size {train.micro_batch_size} / dp {dp}) in "
                            f"multiples of pipeline_model_parallel_size {pp}")
    if parallel.virtual_pipeline_model_parallel_size and pp == 1:
        problems.append("parallel.virtual_pipeline_model_parallel_size needs pipeline_model_parallel_size of 2 or more")
    if cp > 1 and config.data.seq_length % (2 * cp):
        problems.append(f"data.seq_length {config.data.seq_length} must be a multiple of 2 x context_parallel_size "
                        f"= {2 * cp}")
    if parallel.sequence_parallel and tp == 1:
        problems.append("parallel.sequence_parallel needs tensor_model_parallel_size of 2 or more")
    if parallel.sequence_parallel and config.data.seq_length % (tp * cp):
        problems.append(f"data.seq_length {config.data.seq_length} must be a multiple of tensor_model_parallel_size "
                        f"{tp}{f' x context_parallel_size {cp}' if cp > 1 else ''} with sequence_parallel")
    if parallel.overlap_param_gather and not parallel.use_distributed_optimizer:
        problems.append("parallel.overlap_param_gather needs use_distributed_optimizer")
    return problems


def _schedule_problems(config: RunConfig) -> list[str]:
    optimizer, num_samples = config.optimizer, config.train_iters * config.train.global_batch_size
    problems = []
    if optimizer.min_lr > optimizer.lr:
        problems.append(f"optimizer.min_lr {optimizer.min_lr:g} is above optimizer.lr {optimizer.lr:g}")
    if config.schedule.warmup_init_lr > optimizer.lr:
        problems.append(f"schedule.warmup_init_lr {config.schedule.warmup_init_lr:g} is above optimizer.lr "
                        f"{optimizer.lr:g}")
    if config.schedule.style != "WSD":
        problems += [f"schedule.{key} is of style WSD alone; style {config.schedule.style} would ignore it: remove it"
                     for key in ("decay_fraction", "decay_tokens", "decay_iters")
                     if getattr(config.schedule, key) is not None]
    if config.warmup_samples >= num_samples:
        problems.append(f"the warm-up takes {config.warmup_samples:,} samples, the whole run {num_samples:,}; shorten "
                        "schedule.warmup_* or raise train.budget_tokens")
    elif config.schedule.style == "WSD" and config.warmup_samples + config.decay_samples > num_samples:
        problems.append(f"warm-up {config.warmup_samples:,} and decay {config.decay_samples:,} are longer than the run "
                        f"of {num_samples:,} samples; shorten schedule.warmup_* or schedule.decay_*")
    return problems


def _iteration_problems(config: RunConfig) -> list[str]:
    """Settings about iterations that the run does not have."""
    length, problems = config.train_iters * config.tokens_per_iteration, []
    problems += [f"checkpoint.keep_tokens {tokens:,} lies beyond the run's {length:,} tokens"
                 for tokens in config.checkpoint.keep_tokens if config.iterations_of(tokens) > config.train_iters]
    skipped = [(first, min(last, config.train_iters)) for first, last in config.train.skip_iterations]
    if sum(last - first + 1 for first, last in skipped if first <= last) == config.train_iters:
        problems.append(f"train.skip_iterations pass over all {config.train_iters:,} iterations of the run")
    return problems


def _missing_packages(config: RunConfig) -> list[str]:
    packages = {"logging.tensorboard": ("tensorboard", "pip install tensorboard"),
                "logging.wandb_project": ("wandb", "pip install wandb"),
                "logging.mlflow_experiment": ("mlflow", "pip install mlflow-skinny")}
    wanted = [(key, *packages[key]) for key in packages if getattr(config.logging, key.partition(".")[2])]
    if config.model.layer_implementation == "transformer_engine":
        wanted.append(("model.layer_implementation", "transformer_engine",
                       "make gpu (requirements-gpu.txt)"))
    return [f"{key}: the package {module} is not installed; {mend}, or change the setting"
            for key, module, mend in wanted if importlib.util.find_spec(module) is None]


def _model_problems(config: RunConfig, architecture: Architecture) -> list[str]:
    problems = layout_problems(architecture, config.parallel)
    if config.model.layer_implementation == "transformer_engine":
        problems += _transformer_engine_problems(config)
    elif config.model.fp8:
        problems.append("model.fp8 needs model.layer_implementation transformer_engine")
    if config.data.seq_length > architecture.max_sequence_length:
        problems.append(f"data.seq_length {config.data.seq_length} is above the model's max_position_embeddings "
                        f"{architecture.max_sequence_length}")
    return problems


def _transformer_engine_problems(config: RunConfig) -> list[str]:
    context = config.parallel.context_parallel_size
    problems = []
    if config.packs_documents and context > 1:
        problems.append(f"data.document_mask under transformer_engine needs parallel.context_parallel_size 1: its "
                        f"kernels would cut every document into {2 * context} equal pieces; or set "
                        "model.layer_implementation=local")
    if config.data.reset_positions and not config.data.document_mask:
        problems.append("data.reset_positions without data.document_mask needs model.layer_implementation local: "
                        "Transformer Engine's rotary kernel takes the same positions for all samples")
    return problems


def _data_problems(config: RunConfig, has_trunk: bool) -> list[str]:
    """What is wrong with the data.

    Args:
        has_trunk: the run's trunk, if it has one, is as it should be.
    """
    problems, artifacts = [], {}
    for key, folder in _data_folders(config).items():
        try:
            artifacts[key] = Artifact.open(folder, kind="tokenized")
        except UserError as error:
            problems.append(f"{key}: {error}")
    problems += [problem for key, artifact in artifacts.items() for problem in _content_problems(key, artifact)]
    problems += tokenizer_problems(config, artifacts)
    if not problems and has_trunk:
        try:
            problems += empty_sources(plan_run(config, source_sizes(config)))
        except UserError as error:
            problems.append(str(error))
    return problems


def empty_sources(plan: BlendPlan) -> list[str]:
    """One line for each source of which the run would see nothing: it would train as if the source were not named."""
    return [f"data.sources.{source.name}: of its {source.available_tokens:,} tokens the run would see nothing; raise "
            "its amount, see why it has so little text, or remove it"
            for source in plan.sources if source.num_samples == 0]


def _content_problems(key: str, artifact: Artifact) -> list[str]:
    """A source without text, or a held-out split without a token, says nothing whatever is done with it."""
    split = "train" if key.startswith("data.") else "valid"
    if artifact.counts[split]["tokens"]:
        return []
    mend = ("see why nothing was left (rejected rewrites, a misspelt style), or remove the source" if split == "train"
            else "tokenize it with a larger valid_fraction, or remove it")
    return [f"{key}: {artifact.path} has no token in its {split} split; {mend}"]


def _data_folders(config: RunConfig) -> dict[str, Path]:
    """Settings key -> folder of everything tokenized that the run reads."""
    folders = {f"data.sources.{name}.path": source.path for name, source in config.data.sources.items()}
    return folders | {f"validation.sources.{name}": path for name, path in config.validation.sources.items()}
