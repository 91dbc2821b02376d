"""Configuration of a training run. Field names are Megatron's where the value goes to megatron-core."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from megatron_ext.identity import DECIDING, LAYOUT, PLACE, WATCHING
from megatron_ext.settings import Settings


class ModelConfig(Settings):
    """The model that is trained on."""

    hf_folder: Annotated[Path, PLACE]
    """Hugging Face folder of the base model: config.json, safetensors, tokenizer."""
    layer_implementation: Annotated[Literal["local", "transformer_engine"], LAYOUT] = "local"
    """`local` is plain PyTorch (scaled-dot-product attention) and runs everywhere; `transformer_engine` needs a GPU."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Type of weights and activations; the optimizer always keeps float32 main weights."""
    fp8: bool = False
    """Matrix products in fp8 (hybrid: E4M3 forward, E5M2 gradients); needs transformer_engine and a Hopper GPU."""
    recompute_activations: Annotated[bool, LAYOUT] = False
    """Recompute every layer's activations in the backward pass: less memory, about a third more compute."""


class SourceConfig(Settings):
    """One source of the blend: a tokenized artifact and how much of it a run sees. Give exactly one amount."""

    path: Annotated[Path, PLACE]
    """Folder of a tokenized artifact."""
    tokens: int | None = Field(default=None, ge=0)
    """Amount in tokens."""
    epochs: float | None = Field(default=None, ge=0)
    """Amount in passes over the source's training split."""
    fraction: float | None = Field(default=None, ge=0, le=1)
    """Amount as a fraction of the run's budget, 0 to 1."""
    fill: bool = False
    """Take what the other sources leave of the budget (several such sources share it by their size)."""
    max_epochs: Annotated[float, WATCHING] = Field(default=1.0, gt=0)
    """Repetition that is allowed; a plan that needs more is refused."""

    @model_validator(mode="after")
    def _one_amount(self) -> SourceConfig:
        given = [name for name in ("tokens", "epochs", "fraction") if getattr(self, name) is not None]
        given += ["fill"] if self.fill else []
        if len(given) != 1:
            raise ValueError(f"give exactly one of tokens, epochs, fraction, fill: true (given: {given or 'none'})")
        return self


class DataConfig(Settings):
    """What the run reads."""

    sources: dict[str, SourceConfig]
    """Name -> source of the blend."""
    seq_length: int = Field(default=4096, gt=0)
    """Tokens in a sample."""
    document_mask: bool = False
    """A token sees only its own document, and predicts nothing of the next one: a packed sample's loss is that of its
    documents alone."""
    reset_positions: bool = False
    """Positions begin at 0 in every document of a sample, not in every sample."""
    other_tokenizer: Annotated[bool, WATCHING] = False
    """Allow sources whose tokenizer's file is another than the model folder's, or than each other's: the ids must mean
    the same."""


class TrainConfig(Settings):
    """How much is trained, in what batches."""

    budget_tokens: int = Field(gt=0)
    """Tokens of the whole run, its trunk included; rounded up to whole iterations. May grow when a run goes on, where
    that is exact: before any decay, with all amounts as fractions, the warm-up not given as one."""
    global_batch_size: int = Field(default=256, gt=0)
    """Samples in an iteration."""
    micro_batch_size: Annotated[int, LAYOUT] = Field(default=1, gt=0)
    """Samples in one forward pass of one data-parallel rank."""
    exit_duration_minutes: Annotated[float | None, WATCHING] = Field(default=None, gt=0)
    """Save and leave after so many minutes, as if asked to stop; the same call goes on."""
    seed: int = Field(default=0, ge=0)
    """Seed of the order of samples; nothing else in a run is random."""
    skip_iterations: list[tuple[Annotated[int, Field(gt=0)], Annotated[int, Field(gt=0)]]] = Field(default_factory=list)
    """Iterations that are passed over, as [[first, last], …] counted from 1: their batches are not trained on, their
    place in the schedule passes. Ranges that lie ahead may be added when a run goes on, e.g. after a rollback."""

    @field_validator("skip_iterations")
    @classmethod
    def _ranges(cls, ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
        ordered = sorted(ranges)
        for first, last in ordered:
            if first > last:
                raise ValueError(f"[{first}, {last}]: the first iteration is after the last")
        for (_, last), (first, end) in itertools.pairwise(ordered):
            if first <= last:
                raise ValueError(f"[{first}, {end}] begins before an earlier range ends at {last}")
        return ordered

    def is_skipped(self, iteration: int) -> bool:
        """Whether an iteration, counted from 1, is passed over."""
        return any(first <= iteration <= last for first, last in self.skip_iterations)


class OptimizerConfig(Settings):
    """AdamW. Norms and biases get no weight decay."""

    lr: float = Field(default=2e-5, gt=0)
    """Peak learning rate."""
    min_lr: float = Field(default=2e-6, ge=0)
    """Learning rate at the end of the decay."""
    weight_decay: float = Field(default=0.1, ge=0)
    """Decoupled weight decay."""
    adam_beta1: float = Field(default=0.9, ge=0, lt=1)
    """Decay of the first moment."""
    adam_beta2: float = Field(default=0.95, ge=0, lt=1)
    """Decay of the second moment."""
    adam_eps: float = Field(default=1e-8, gt=0)
    """Added to the denominator."""
    clip_grad: float = Field(default=1.0, ge=0)
    """Maximum global gradient norm; 0 clips nothing."""


class ScheduleConfig(Settings):
    """Learning rate over the run. Warm-up and WSD's decay are each given in one of three units."""

    style: Literal["cosine", "linear", "constant", "WSD"] = "cosine"
    """Shape of the decay after the warm-up."""
    warmup_fraction: float | None = Field(default=None, ge=0, lt=1)
    """Linear warm-up, as a fraction of the run; 0.05 when no warm-up is given."""
    warmup_tokens: int | None = Field(default=None, ge=0)
    """The same in tokens."""
    warmup_iters: int | None = Field(default=None, ge=0)
    """The same in iterations."""
    warmup_init_lr: float = Field(default=0.0, ge=0)
    """Learning rate that the warm-up starts from."""
    decay_fraction: float | None = Field(default=None, gt=0, le=1)
    """WSD: last part of the run in which the learning rate falls; 0.1 when no decay is given."""
    decay_tokens: int | None = Field(default=None, gt=0)
    """The same in tokens."""
    decay_iters: int | None = Field(default=None, gt=0)
    """The same in iterations."""
    wsd_decay_style: Literal["linear", "cosine", "exponential", "minus_sqrt"] = "linear"
    """WSD: shape of that decay."""

    @model_validator(mode="after")
    def _one_unit(self) -> ScheduleConfig:
        for name in ("warmup", "decay"):
            given = [key for unit in ("fraction", "tokens", "iters")
                     if getattr(self, key := f"{name}_{unit}") is not None]
            if len(given) > 1:
                raise ValueError(f"{' and '.join(given)} say the same in two units; give one")
        return self


class ParallelConfig(Settings):
    """Layout over processes. The data-parallel size follows from the world size."""

    tensor_model_parallel_size: int = Field(default=1, gt=0)
    """Ranks that share each layer (tp)."""
    pipeline_model_parallel_size: int = Field(default=1, gt=0)
    """Ranks that hold consecutive layers (pp)."""
    virtual_pipeline_model_parallel_size: int | None = Field(default=None, gt=1)
    """Model chunks a pipeline rank holds, for the interleaved schedule; None for the plain one."""
    context_parallel_size: int = Field(default=1, gt=0)
    """Ranks that share each sequence (cp), for sequences whose activations do not fit one device."""
    sequence_parallel: bool = False
    """Shard norms and residuals along the sequence over the tp ranks."""
    use_distributed_optimizer: Annotated[bool, DECIDING] = True
    """Shard optimizer states over the data-parallel ranks."""
    overlap_grad_reduce: bool = False
    """Reduce gradients while the backward pass runs."""
    overlap_param_gather: bool = False
    """Gather updated weights while the next forward pass runs (needs the distributed optimizer)."""


class CheckpointConfig(Settings):
    """When the run's state is saved."""

    interval_tokens: int | None = Field(default=None, gt=0)
    """Save every so many tokens; None saves at the end (and when the run is asked to stop) alone."""
    keep_last: int = Field(default=2, gt=0)
    """Checkpoints that are kept; older ones are removed after a new one is whole."""
    keep_tokens: list[Annotated[int, Field(gt=0)]] = Field(default_factory=list)
    """Save after so many tokens of the run, too, and never remove these checkpoints (to be evaluated later)."""
    asynchronous: bool = False
    """Write in a process aside while training goes on; a copy of the state is kept in the host's memory meanwhile."""


class ValidationConfig(Settings):
    """Held-out loss a source."""

    sources: dict[str, Path] = Field(default_factory=dict)
    """Name -> tokenized artifact whose validation split is measured."""
    interval_tokens: int | None = Field(default=None, gt=0)
    """Validate every so many tokens, besides before the first and after the last iteration."""
    max_tokens_per_source: int = Field(default=1_000_000, gt=0)
    """Tokens of each validation split that are used, from its beginning, in whole documents."""


class GuardConfig(Settings):
    """What protects a run. A loss or gradient that is not finite always ends it, before the update."""

    spike_factor: Annotated[float | None, LAYOUT] = Field(default=None, gt=1)
    """An iteration whose gradient norm is above this multiple of the recent median makes no update; None: all do."""
    spike_window_iters: Annotated[int, LAYOUT] = Field(default=128, gt=0)
    """Iterations that the median is over; before so many are done, nothing is skipped."""
    max_skipped_in_a_row: Annotated[int, LAYOUT] = Field(default=5, gt=0)
    """More skipped iterations than this in a row end the run: it has diverged."""
    hang_minutes: Annotated[float | None, WATCHING] = Field(default=30.0, gt=0)
    """A rank that finishes no iteration, validation or checkpoint in so long writes the stack of all its threads and
    ends; None waits for ever."""


class LoggingConfig(Settings):
    """What the run tells."""

    interval_iters: int = Field(default=1, gt=0)
    """Iterations between lines on the console; metrics.jsonl has every iteration."""
    tensorboard: bool = False
    """Also write TensorBoard events."""
    wandb_project: str | None = None
    """Also log to this project of Weights & Biases (pip install wandb; WANDB_MODE=offline writes files alone)."""
    mlflow_experiment: str | None = None
    """Also log to this experiment of MLflow (pip install mlflow-skinny; MLFLOW_TRACKING_URI says where)."""
    peak_tflops: float | None = Field(default=None, gt=0)
    """Peak TFLOP/s of one device in the run's dtype, for the model FLOPs utilisation (H100 SXM bf16 dense: 989)."""


class StartConfig(Settings):
    """The checkpoint of another run, its trunk, that a branch goes on from. Iterations, budget and schedule count from
    the trunk's beginning. Amounts in tokens and epochs are of the branch's own part, unless blend and budget are those
    of the trunk: then its plan goes on."""

    checkpoint: Annotated[Path, PLACE]
    """`<run>/checkpoints/iter_…`: weights, and how far the trunk had come in its data and schedule."""
    optimizer: bool = True
    """Go on with the optimizer's state, too; false: with moments of zero, and main weights as the model's are stored.
    """


class RunConfig(Settings):
    """A training run."""

    output: Annotated[Path, PLACE]
    """Run folder: metrics, exposure ledger, checkpoints."""
    start: StartConfig | None = None
    """Begin where another run stood, not with the base model's weights."""
    model: ModelConfig
    data: DataConfig
    train: TrainConfig
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    parallel: Annotated[ParallelConfig, LAYOUT] = ParallelConfig()
    checkpoint: Annotated[CheckpointConfig, WATCHING] = CheckpointConfig()
    validation: Annotated[ValidationConfig, WATCHING] = ValidationConfig()
    guard: GuardConfig = GuardConfig()
    logging: Annotated[LoggingConfig, WATCHING] = LoggingConfig()
    resume_from: Annotated[str | None, WATCHING] = Field(default=None, pattern=r"^iter_\d{1,7}$")
    """Go back to this checkpoint of the run (e.g. iter_0000400), once: newer checkpoints and metrics are set aside."""

    @property
    def unused_sections(self) -> Collection[str]:
        """A run without a trunk is what it was before there were any."""
        return () if self.start else ("start",)

    @property
    def tokens_per_iteration(self) -> int:
        """Tokens in a global batch."""
        return self.train.global_batch_size * self.data.seq_length

    @property
    def train_iters(self) -> int:
        """Iterations: the budget, rounded up."""
        return self.iterations_of(self.train.budget_tokens)

    @property
    def num_samples(self) -> int:
        """Samples of the whole run, its trunk included."""
        return self.train_iters * self.train.global_batch_size

    @property
    def packs_documents(self) -> bool:
        """Whether documents are kept apart by where they begin (Transformer Engine's kernels), without a mask."""
        return self.data.document_mask and self.model.layer_implementation == "transformer_engine"

    @property
    def kept_iterations(self) -> set[int]:
        """Iterations after which `checkpoint.keep_tokens` asks for a checkpoint that stays."""
        return {max(1, round(tokens / self.tokens_per_iteration)) for tokens in self.checkpoint.keep_tokens}

    @property
    def warmup_samples(self) -> int:
        """Length of the warm-up; samples are the unit of the schedule, so that it does not depend on the layout."""
        return self._samples("warmup", default_fraction=0.05)

    @property
    def decay_samples(self) -> int:
        """Length of WSD's decay."""
        return self._samples("decay", default_fraction=0.1)

    @property
    def decay_start(self) -> float:
        """Samples after which the learning rate falls; infinite where it never does."""
        if self.schedule.style == "constant":
            return math.inf
        return self.num_samples - self.decay_samples if self.schedule.style == "WSD" else self.warmup_samples

    def _samples(self, part: str, default_fraction: float) -> int:
        schedule = self.schedule.model_dump()
        tokens, iterations = schedule[f"{part}_tokens"], schedule[f"{part}_iters"]
        if tokens is not None:
            return round(tokens / self.data.seq_length)
        if iterations is not None:
            return iterations * self.train.global_batch_size
        fraction = schedule[f"{part}_fraction"]
        fraction = default_fraction if fraction is None else fraction
        return round(fraction * self.num_samples)

    def iterations_of(self, budget_tokens: int) -> int:
        """Iterations of a budget, rounded up."""
        return -(-budget_tokens // self.tokens_per_iteration)

    def iterations(self, tokens: int | None) -> int | None:
        """An interval in tokens as iterations, at least one."""
        return None if tokens is None else max(1, round(tokens / self.tokens_per_iteration))
