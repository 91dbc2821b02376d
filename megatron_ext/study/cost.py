"""What a study will cost, before it runs: GPU-hours and disk of each job, with the arithmetic.

Everything rests on megatron_ext.study.cost_settings and on token counts that follow from the study file.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_ext.artifacts import Artifact, is_finished
from megatron_ext.config import RunConfig
from megatron_ext.data.rewriting.rewrite import RewriteSettings
from megatron_ext.errors import UserError
from megatron_ext.settings import validate
from megatron_ext.study.cost_settings import CostSettings
from megatron_ext.study.graph import Inside, Node
from megatron_ext.study.jobs import Job

_REWRITER_BILLION = 8.0  # size that rewrite_tokens_per_second is given for


@dataclass(frozen=True)
class Cost:
    """A forecast."""

    gpu_hours: float = 0.0
    disk_bytes: float = 0.0
    arithmetic: str = ""
    """How the numbers came about."""


def job_cost(job: Job, settings: CostSettings, work: Path) -> Cost:
    """The forecast for one job; a merge costs nothing beside its array, which writes what it joins.

    Raises UserError for a model whose size is not known.
    """
    node = job.node
    if node is None or (job.num_parts is None and job.script == "merge.sbatch"):
        return Cost()
    return node_cost(node, settings, work)


def node_cost(node: Node, settings: CostSettings, work: Path) -> Cost:
    """The forecast for one node."""
    match node.stage:
        case "select":
            return _select(node, settings)
        case "rewrite":
            return _rewrite(node, settings, work)
        case "tokenize":
            tokens, size = num_tokens(node, settings), settings.bytes_per_token_id
            return Cost(0, tokens * size, f"{_billions(tokens)} tokens x {size} B")
        case "run":
            return _run(node, settings, work)
        case "export":
            parameters = num_parameters(_parent(node, "checkpoint"), settings, work)
            return Cost(0, parameters * settings.model_bytes_per_parameter,
                        f"{_billions(parameters)} x {settings.model_bytes_per_parameter:g} B")
        case "evaluate":
            return _evaluate(node, settings, work)
    return Cost()


def num_tokens(node: Node, settings: CostSettings) -> float:
    """Tokens that a data stage is expected to write."""
    match node.stage:
        case "select":
            return node.settings["budget_tokens"]
        case "rewrite":
            return num_tokens(_parent(node, "documents"), settings) * settings.rewrite_yield * len(_styles(node))
    documents = _parent(node, "documents")
    wanted = node.settings.get("styles")
    share = len(wanted) / len(_styles(documents)) if wanted else 1.0
    return num_tokens(documents, settings) * share


def num_parameters(node: Node, settings: CostSettings, work: Path) -> float:
    """Parameters of the model that a node holds or was made from.

    Raises UserError when the model is not fetched and the study file does not tell its size.
    """
    while node.stage != "model":
        node = _parent(node, next(key for key in ("model", "model.hf_folder", "checkpoint") if key in node.inputs))
    if is_finished(node.output(work)):
        return Artifact.open(node.output(work)).counts["num_parameters"]
    model = str(node.inputs.get("model", node.settings.get("model")))
    if model not in settings.billion_parameters:
        raise UserError(f"the size of {model} is not known before it is fetched: name it in cost.billion_parameters")
    return settings.billion_parameters[model] * 1e9


def _select(node: Node, settings: CostSettings) -> Cost:
    tokens = num_tokens(node, settings)
    return Cost(0, tokens * settings.bytes_per_token / settings.parquet_compression,
                f"{_billions(tokens)} tokens x {settings.bytes_per_token:g} B / {settings.parquet_compression:g}")


def _rewrite(node: Node, settings: CostSettings, work: Path) -> Cost:
    source, written = num_tokens(_parent(node, "documents"), settings), num_tokens(node, settings)
    billions = num_parameters(_parent(node, "model"), settings, work) / 1e9
    speed = settings.rewrite_tokens_per_second * _REWRITER_BILLION / billions
    text_bytes = written * settings.bytes_per_token * (1 + settings.rewrite_records) / settings.parquet_compression
    return Cost(written / speed / 3600, text_bytes,
                f"{_billions(source)} tokens x {len(_styles(node))} styles x {settings.rewrite_yield:g} = "
                f"{_billions(written)} tokens / {speed:,.0f} a second and GPU")


def _run(node: Node, settings: CostSettings, work: Path) -> Cost:
    config = validate(RunConfig, node.config(work) | {"output": "."}, where=node.name)
    tokens = config.train_iters * config.tokens_per_iteration
    parameters = num_parameters(node, settings, work)
    interval = config.iterations(config.checkpoint.interval_tokens) or config.train_iters
    saved = len(config.kept_iterations | {config.train_iters, *range(interval, config.train_iters, interval)})
    kept = min(saved, len(config.kept_iterations) + config.checkpoint.keep_last)
    tflops, size = settings.train_tflops_per_gpu, settings.checkpoint_bytes_per_parameter
    return Cost(6 * parameters * tokens / (tflops * 1e12) / 3600, kept * parameters * size,
                f"6 x {_billions(parameters)} x {_billions(tokens)} tokens / {tflops:g} TFLOP/s; "
                f"{kept} checkpoints x {_billions(parameters)} x {size:g} B")


def _evaluate(node: Node, settings: CostSettings, work: Path) -> Cost:
    parameters = num_parameters(node, settings, work)
    tokens = settings.evaluate_prompt_tokens
    return Cost(2 * parameters * tokens / (settings.evaluate_tflops_per_gpu * 1e12) / 3600, 0,
                f"2 x {_billions(parameters)} x {_billions(tokens)} tokens / {settings.evaluate_tflops_per_gpu:g} "
                "TFLOP/s")


def _styles(node: Node) -> list[str]:
    return node.settings.get("styles", RewriteSettings.model_fields["styles"].default)


def _parent(node: Node, key: str) -> Node:
    value: Any = node.inputs[key]
    return value.node if isinstance(value, Inside) else value


def _billions(value: float) -> str:
    return f"{value / 1e9:.3g}B" if value >= 1e7 else f"{value:,.0f}"
