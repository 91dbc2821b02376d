"""Which checkpoints of its runs a study uses: those that it evaluates along training, and those that it merges."""

from __future__ import annotations

from megatron_ext.config import RunConfig
from megatron_ext.errors import UserError
from megatron_ext.study.config import StudyConfig, planned_trunk
from megatron_ext.training.run_folder import checkpoint_name


def checkpoint_folder(iteration: int) -> str:
    """Folder of a checkpoint in a run's."""
    return f"checkpoints/{checkpoint_name(iteration)}"


def evaluated(study: StudyConfig, name: str, config: RunConfig) -> list[tuple[str, int]]:
    """(name below export/ and evaluate/, iteration) of each checkpoint of a run that is evaluated, in their order."""
    earlier = [(f"{name}/{checkpoint_name(iteration)}", iteration) for iteration in _evaluated_before(study, config)]
    return [*earlier, (name, config.train_iters)]


def merged_iterations(study: StudyConfig, condition: str, config: RunConfig) -> list[int]:
    """Iterations of a run of a condition whose checkpoints are merged, the last among them; none where none are.

    Raises UserError when its run has fewer.
    """
    wanted = study.evaluation.merge_last
    if wanted == 1:
        return []
    saved = {*_at_intervals(config), *config.kept_iterations, *_evaluated_before(study, config)}
    found = [*_own(study, config, saved), config.train_iters]
    if len(found) < wanted:
        after = f"iterations {', '.join(map(str, found))}" if len(found) > 1 else f"iteration {found[0]} alone"
        raise UserError(f"evaluation.merge_last = {wanted}, but a run of {condition!r} saves after {after}"
                        f"{' (those of the trunk do not count)' if study.trunk else ''}: lower it, or save more often "
                        "(run.checkpoint.interval_tokens, keep_tokens)")
    return found[-wanted:]


def used_iterations(study: StudyConfig, condition: str, config: RunConfig) -> list[int]:
    """Iterations before the last whose checkpoints must stay until the study is done."""
    used = {*_evaluated_before(study, config), *merged_iterations(study, condition, config)}
    return sorted(used - {config.train_iters})


def _evaluated_before(study: StudyConfig, config: RunConfig) -> list[int]:
    """Iterations before the last whose checkpoints the study evaluates.

    Raises UserError when the study asks for all checkpoints of a run that has no interval, or for some that no run can
    have.
    """
    wanted = study.evaluation.checkpoints
    if wanted == "last":
        return []
    if wanted == "all":
        if config.checkpoint.interval_tokens is None:
            raise UserError("evaluation.checkpoints = all needs run.checkpoint.interval_tokens")
        return _own(study, config, _at_intervals(config))
    begins, ends = _begins(study), config.train_iters
    for tokens in wanted:
        if not begins < (config.iterations(tokens) or 1) <= ends:
            raise UserError(f"evaluation.checkpoints: a run has no checkpoint of its own after {tokens:,} tokens; it "
                            f"goes from {begins * config.tokens_per_iteration:,} to "
                            f"{ends * config.tokens_per_iteration:,}")
    return _own(study, config, {config.iterations(tokens) or 1 for tokens in wanted})


def _at_intervals(config: RunConfig) -> set[int]:
    """Those after the run's intervals, none just before the last."""
    interval = config.iterations(config.checkpoint.interval_tokens)
    return set(range(interval, config.train_iters - interval // 2, interval)) if interval else set()


def _own(study: StudyConfig, config: RunConfig, iterations: set[int]) -> list[int]:
    """Those after the trunk and before the run's last, in their order."""
    begins = _begins(study)
    return sorted(iteration for iteration in iterations if begins < iteration < config.train_iters)


def _begins(study: StudyConfig) -> int:
    """Iterations of the trunk that a run leaves; 0 without one."""
    return planned_trunk(study).train_iters if study.trunk else 0
