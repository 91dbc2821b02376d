"""Everything that training changes: model, optimizer, schedule; and how it is built."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.optimizer import (
    MegatronOptimizer,
    OptimizerConfig,
    get_megatron_optimizer,
    get_standard_config_overrides,
)
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
from torch import Tensor

from megatron_ext.config import RunConfig
from megatron_ext.model.checkpoints import load_model
from megatron_ext.model.gpt import build_model
from megatron_ext.model.hf_weights import load_hf_weights
from megatron_ext.training.clock import Clock
from megatron_ext.training.guards import SpikeGuard


@dataclass
class TrainState:
    """What a checkpoint holds, and where this rank stands in the layout."""

    config: RunConfig
    model: list[DistributedDataParallel]
    """Model chunks of this rank: one, or several under virtual pipeline parallelism."""
    optimizer: MegatronOptimizer
    scheduler: OptimizerParamScheduler
    dp_rank: int
    dp_size: int
    spikes: SpikeGuard
    clock: Clock
    iteration: int = 0
    """Iterations that are done."""

    @property
    def num_micro_batches(self) -> int:
        """Micro-batches of this rank in an iteration."""
        return self.config.train.global_batch_size // (self.config.train.micro_batch_size * self.dp_size)

    def go_on_after(self, iteration: int) -> None:
        """Stand after so many iterations, in the run's own schedule."""
        self.iteration = iteration
        self.scheduler.num_steps = iteration * self.config.train.global_batch_size
        self.scheduler.step(increment=0)

    def gather_weights(self) -> None:
        """Make the model's weights those of the optimizer on every rank; all ranks call it before weights are read.

        Under overlap_param_gather the ranks' parts of the last update wait for the next forward pass to be gathered.
        """
        if self.model[0].ddp_config.overlap_param_gather:
            for chunk in self.model:
                chunk.start_param_sync(force_sync=True)


def build_train_state(config: RunConfig, checkpoint: Path | None = None) -> TrainState:
    """Model, optimizer and schedule, under the initialised process groups.

    Args:
        checkpoint: whose weights the model gets; None: the base model's.
    """
    model = _build_model(config, checkpoint)
    optimizer = _build_optimizer(config, model)
    clock = Clock()
    _connect(model, optimizer, clock)
    return TrainState(
        config, model, optimizer, _build_scheduler(config, optimizer),
        dp_rank=parallel_state.get_data_parallel_rank(), dp_size=parallel_state.get_data_parallel_world_size(),
        spikes=SpikeGuard(config.guard), clock=clock,
    )


def _build_model(config: RunConfig, checkpoint: Path | None) -> list[DistributedDataParallel]:
    chunks = build_model(config.model, config.parallel)
    if checkpoint is None:
        load_hf_weights(chunks, config.model.hf_folder)
    else:
        load_model(chunks, checkpoint)
    ddp_config = DistributedDataParallelConfig(
        grad_reduce_in_fp32=True,
        use_distributed_optimizer=config.parallel.use_distributed_optimizer,
        overlap_grad_reduce=config.parallel.overlap_grad_reduce,
        overlap_param_gather=config.parallel.overlap_param_gather,
    )
    for chunk in chunks:
        chunk.config.calculate_per_token_loss = True  # every predicted token counts the same, whatever the layout
    return [
        DistributedDataParallel(chunk.config, ddp_config, chunk, disable_bucketing=number > 0)
        for number, chunk in enumerate(chunks)
    ]


def _build_optimizer(config: RunConfig, model: list[DistributedDataParallel]) -> MegatronOptimizer:
    settings = config.optimizer
    dtype = model[0].config.params_dtype
    optimizer_config = OptimizerConfig(
        optimizer="adam",
        lr=settings.lr,
        min_lr=settings.min_lr,
        weight_decay=settings.weight_decay,
        adam_beta1=settings.adam_beta1,
        adam_beta2=settings.adam_beta2,
        adam_eps=settings.adam_eps,
        clip_grad=settings.clip_grad,
        bf16=config.model.dtype == "bfloat16",
        params_dtype=dtype,
        use_distributed_optimizer=config.parallel.use_distributed_optimizer,
        overlap_param_gather=config.parallel.overlap_param_gather,
    )
    overrides = get_standard_config_overrides(optimizer_config)  # norms and biases without weight decay
    return get_megatron_optimizer(optimizer_config, model, config_overrides=overrides)


def _connect(model: list[DistributedDataParallel], optimizer: MegatronOptimizer, clock: Clock) -> None:
    """Tell megatron-core's schedules how to scale, synchronise and finish gradients."""
    config = model[0].config
    config.finalize_model_grads_func = clock.measured("communication", finish_gradients)
    config.grad_scale_func = optimizer.scale_loss
    if model[0].ddp_config.overlap_grad_reduce:
        no_sync = [chunk.no_sync for chunk in model]
        config.no_sync_func = no_sync if len(model) > 1 else no_sync[0]


def finish_gradients(model: list[DistributedDataParallel], num_tokens: Tensor, **options: Any) -> None:
    """megatron-core's `finalize_model_grads`; in its own division by the tokens of the global batch the host would wait
    until their number is known.

    Args:
        num_tokens: int `[]`, of this rank's micro-batches if it is of the last pipeline stage, else 0.
    """
    finalize_model_grads(model, None, **options)
    dist.broadcast(num_tokens, src=parallel_state.get_pipeline_model_parallel_last_rank(),
                   group=parallel_state.get_pipeline_model_parallel_group())
    dist.all_reduce(num_tokens, group=parallel_state.get_data_parallel_group(with_context_parallel=True))
    for chunk in model:
        chunk.scale_gradients(1.0 / num_tokens)


def _build_scheduler(config: RunConfig, optimizer: MegatronOptimizer) -> OptimizerParamScheduler:
    """Learning rate by consumed samples, so that it does not depend on the layout."""
    num_samples = config.num_samples
    return OptimizerParamScheduler(
        optimizer,
        init_lr=config.schedule.warmup_init_lr,
        max_lr=config.optimizer.lr,
        min_lr=config.optimizer.min_lr,
        lr_warmup_steps=config.warmup_samples,
        lr_decay_steps=num_samples,
        lr_decay_style=config.schedule.style,
        wsd_decay_steps=config.decay_samples,
        lr_wsd_decay_style=config.schedule.wsd_decay_style,
        start_wd=config.optimizer.weight_decay,
        end_wd=config.optimizer.weight_decay,
        wd_incr_steps=num_samples,
        wd_incr_style="constant",
    )
