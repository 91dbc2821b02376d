"""The trunk of a branch: a checkpoint of another run, how far it had come, and whether the branch can leave it there.

Nothing here needs torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from megatron_ext.artifacts import Artifact, reference
from megatron_ext.config import RunConfig, StartConfig
from megatron_ext.data.blend import BlendPlan, plan_blend
from megatron_ext.data.past import Past, SourceRead
from megatron_ext.errors import UserError
from megatron_ext.files import read_json
from megatron_ext.model.likeness import unlike
from megatron_ext.training.run_folder import RUN_STATE, config_of, skipped_until
from megatron_ext.training.settings import HF_METADATA

_SAME = ("train.global_batch_size", "data.seq_length", "model.dtype")
"""What positions in the trunk, or the form of its weights, rest on."""
_SHAPE = ("num_samples", "warmup_samples", "decay_start")
_AMOUNTS = {"tokens", "epochs", "fraction", "fill"}


@dataclass(frozen=True)
class Trunk:
    """A checkpoint that another run can go on from."""

    checkpoint: Artifact
    state: Mapping[str, Any]
    """What its run has written down beside the weights."""

    @property
    def iteration(self) -> int:
        """Iterations that lie behind."""
        return self.state["iteration"]

    @cached_property
    def config(self) -> RunConfig:
        """What decided the trunk, with contents in the place of paths."""
        return config_of(self.state["identity"])

    @property
    def ledger(self) -> Mapping[str, Any]:
        """The ledger of exposure up to here."""
        return {"iteration": self.iteration, "checkpoint": self.checkpoint.content_hash,
                "sources": {name: read["exposure"] for name, read in self.state["data"]["sources"].items()}}

    @property
    def skipped_iterations(self) -> list[list[int]]:
        """Ranges of iterations that were passed over."""
        return self.state["data"]["skipped_iterations"]

    def past(self, config: RunConfig, contents: Mapping[str, str]) -> Past:
        """What lies behind a branch.

        Args:
            contents: source of the branch -> content hash of its tokenized artifact.
        """
        read = {name: SourceRead.from_json(values) for name, values in self.state["data"]["sources"].items()}
        gone_on = _matched(contents, read)
        left = {name: one for name, one in read.items() if name not in gone_on.values()}
        is_same = (config.num_samples == self.config.num_samples
                   and _amounts(config, contents) == _amounts(self.config, self._contents))
        return Past(self.iteration * config.train.global_batch_size,
                    {mine: read[theirs] for mine, theirs in gone_on.items()}, left,
                    self.state["data"]["blend_from"] if is_same else None)

    @property
    def _contents(self) -> dict[str, str]:
        return {name: str(source.path) for name, source in self.config.data.sources.items()}


def open_trunk(start: StartConfig, *, check: bool = False) -> Trunk:
    """The trunk that a run starts from.

    Args:
        check: compare the hash of every byte that this machine has not seen.

    Raises UserError when it is missing, damaged, or no checkpoint of a run.
    """
    checkpoint = Artifact.open(start.checkpoint, kind="checkpoint")
    if check:
        checkpoint.check()
    state = read_json(start.checkpoint / RUN_STATE) or {}
    if "data" not in state:
        raise UserError(f"{start.checkpoint} does not say what its run has read: it is none of a run's checkpoints, or "
                        "one of an older version. To begin with its weights alone, export it (tools.export_hf) and "
                        "name the folder as model.hf_folder")
    return Trunk(checkpoint, state)


def plan_run(config: RunConfig, sizes: Mapping[str, int]) -> BlendPlan:
    """The blend of a run, after what its trunk has read. Raises UserError as `open_trunk` and `plan_blend`."""
    if config.start is None:
        return plan_blend(config, sizes)
    contents = {name: reference(source.path)["content_hash"] for name, source in config.data.sources.items()}
    return plan_blend(config, sizes, open_trunk(config.start).past(config, contents))


def trunk_problems(config: RunConfig) -> list[str]:
    """Why a run cannot start from its trunk (none: it can, or it has none)."""
    if config.start is None:
        return []
    try:
        trunk = open_trunk(config.start, check=True)
        return [*_model_problems(config), *_setting_problems(config, trunk), *_schedule_problems(config, trunk)]
    except UserError as error:
        return [f"start.checkpoint: {error}"]


def _matched(contents: Mapping[str, str], read: Mapping[str, SourceRead]) -> dict[str, str]:
    """Source of the branch -> the trunk's source of the same bytes, by preference that of the same name."""
    matched = {name: name for name, content in contents.items()
               if name in read and read[name].content_hash == content}
    for name, content in contents.items():
        free = (theirs for theirs, one in read.items()
                if one.content_hash == content and theirs not in matched.values())
        if name not in matched and (theirs := next(free, None)) is not None:
            matched[name] = theirs
    return matched


def _amounts(config: RunConfig, contents: Mapping[str, str]) -> dict[str, Any]:
    return {name: (contents[name], source.model_dump(include=_AMOUNTS))
            for name, source in config.data.sources.items()}


def _model_problems(config: RunConfig) -> list[str]:
    """Another architecture or tokenizer than the trunk's."""
    assert config.start is not None
    try:
        told = list(unlike(config.model.hf_folder, config.start.checkpoint / HF_METADATA))
    except UserError:
        return []  # told where the model is checked
    return [f"start.checkpoint: {config.start.checkpoint} has {one} than model.hf_folder {config.model.hf_folder}: a "
            "branch keeps its trunk's" for one in told]


def _setting_problems(config: RunConfig, trunk: Trunk) -> list[str]:
    assert config.start is not None
    same = [*_SAME, *(["parallel.use_distributed_optimizer"] if config.start.optimizer else [])]
    values = {key: (_at(config, key), _at(trunk.config, key)) for key in same}
    problems = [f"{key} is {mine}, the trunk's {theirs}: a branch has its trunk's; set {key}={theirs}"
                for key, (mine, theirs) in values.items() if mine != theirs]
    ranges = [list(one) for one in config.train.skip_iterations]
    if behind := [one for one in skipped_until(ranges, trunk.iteration) if one not in trunk.skipped_iterations]:
        problems.append(f"train.skip_iterations {behind} lie behind: the trunk has trained on them up to iteration "
                        f"{trunk.iteration}; remove them")
    return problems


def _schedule_problems(config: RunConfig, trunk: Trunk) -> list[str]:
    """A budget, or the beginning of a decay, that lies behind the start."""
    batch = config.train.global_batch_size
    begins = trunk.iteration * batch
    if config.train_iters <= trunk.iteration:
        return [f"train.budget_tokens {config.train.budget_tokens:,} lies behind: the trunk has seen "
                f"{begins * config.data.seq_length:,} tokens, which count; raise it above them"]
    if config.decay_start >= begins or _shape(config) == _shape(trunk.config):
        return []
    return [f"schedule: its {config.schedule.style} decay begins after iteration {config.decay_start / batch:,.0f}, "
            f"behind the start at {trunk.iteration:,}, where the trunk's learning rate did not follow it; let it begin "
            "later (style WSD with decay_iters or decay_tokens, a larger train.budget_tokens)"]


def _shape(config: RunConfig) -> tuple[Any, ...]:
    schedule = config.schedule
    return (schedule.style, schedule.style == "WSD" and schedule.wsd_decay_style, *(getattr(config, name)
                                                                                  for name in _SHAPE))


def _at(config: RunConfig, key: str) -> Any:
    section, _, name = key.partition(".")
    return getattr(getattr(config, section), name)
