"""What a study will cost, before it runs: GPU-hours and disk of each job, with the arithmetic.

Everything rests on megatron_ext.study.cost_settings and on token counts: those of the study file, or those that a
finished stage wrote. A rewriting is taken to rewrite all that it is given.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_ext.artifacts import Artifact, is_finished
from megatron_ext.config import RunConfig
from megatron_ext.data.blend import BlendPlan, plan_blend
from megatron_ext.data.past import Past, SourceRead
from megatron_ext.data.rewriting.judge.pairs import labelled_pairs
from megatron_ext.data.rewriting.judge.settings import JudgeSettings
from megatron_ext.data.rewriting.settings import RewriteSettings
from megatron_ext.errors import UserError
from megatron_ext.settings import validate
from megatron_ext.study.cost_settings import CostSettings
from megatron_ext.study.models import known_parameters, model_node
from megatron_ext.study.nodes import Inside, Node

_REWRITER_BILLION = 8.0  # size that rewrite_tokens_per_second is given for


@dataclass(frozen=True)
class Cost:
    """A forecast."""

    gpu_hours: float = 0.0
    disk_bytes: float = 0.0
    arithmetic: str = ""
    """How the numbers came about."""


class Forecast:
    """Forecasts for the nodes of a study."""

    def __init__(self, settings: CostSettings, work: Path) -> None:
        self._settings = settings
        self._work = work

    def cost(self, node: Node) -> Cost:
        """The cost of a node.

        Raises UserError for a model whose size is not known.
        """
        stages = {"select": self._select, "rewrite": self._rewrite, "judge": self._judge, "tokenize": self._tokenize,
                  "run": self._run, "merge": self._model, "export": self._model, "evaluate": self._evaluate}
        return stages[node.stage](node) if node.stage in stages else Cost()

    def blend(self, run: Node) -> BlendPlan:
        """The blend of a run with the sizes that its sources are expected to have.

        Raises UserError when the amounts do not fit these sizes.
        """
        sizes = {name: round(self._tokens(source) * (1 - source.settings.get("valid_fraction", 0.0)))
                 for name, source in _sources(run).items()}
        return plan_blend(self._run_config(run), sizes, self._past(run))

    def _past(self, run: Node) -> Past | None:
        """What its trunk will have read."""
        trunk = trunk_of(run)
        if trunk is None:
            return None
        plan, names = self.blend(trunk), {node.identity: name for name, node in _sources(trunk).items()}
        seen = plan.samples_seen(plan.num_samples)
        read = {name: SourceRead(node.identity, name, (), seen[names[node.identity]])
                for name, node in _sources(run).items() if node.identity in names}
        return Past(plan.num_samples, read, {})

    def _tokens(self, node: Node) -> float:
        """Tokens that a data stage has written, or is expected to write."""
        if is_finished(node.output(self._work)):
            counts = Artifact.open(node.output(self._work)).counts
            return counts["train"]["tokens"] + counts["valid"]["tokens"] if "train" in counts else counts["tokens"]
        if node.stage == "select":
            return node.settings["budget_tokens"]
        if node.stage == "originals":  # about as long as the rewrites of the same chunks
            return self._tokens(_parent(node, "rewrites"))
        documents = _parent(node, "documents")
        if isinstance(documents, Path):  # text that is only measured: as it lies there
            files = [documents] if documents.is_file() else documents.rglob("*")
            return sum(file.stat().st_size for file in files if file.is_file()) / self._settings.bytes_per_token
        if node.stage == "rewrite":
            return self._tokens(documents) * self._settings.rewrite_yield * len(_styles(node))
        wanted = node.settings.get("styles")
        return self._tokens(documents) * (len(wanted) / len(_styles(documents)) if wanted else 1.0)

    def _parameters(self, node: Node) -> float:
        """Parameters of the model that a node holds or was made from."""
        parameters = known_parameters(node, self._work, self._settings.billion_parameters)
        if parameters is None:
            model = model_node(node)
            raise UserError(f"the size of {model.inputs.get('model', model.settings.get('model'))} is not known before "
                            "it is fetched, and the hub does not tell: name it in cost.billion_parameters")
        return parameters

    def _select(self, node: Node) -> Cost:
        tokens, size, smaller = self._tokens(node), self._settings.bytes_per_token, self._settings.parquet_compression
        return Cost(0, tokens * size / smaller, f"{_short(tokens)} tokens x {size:g} B / {smaller:g}")

    def _rewrite(self, node: Node) -> Cost:
        settings, source, written = self._settings, self._tokens(_parent(node, "documents")), self._tokens(node)
        speed = self._writing_speed(node)
        text_bytes = written * settings.bytes_per_token * (1 + settings.rewrite_records) / settings.parquet_compression
        return Cost(written / speed / 3600, text_bytes,
                    f"{_short(source)} tokens x {len(_styles(node))} styles x {settings.rewrite_yield:g} = "
                    f"{_short(written)} tokens / {speed:,.0f} a second and GPU")

    def _judge(self, node: Node) -> Cost:
        judge = validate(JudgeSettings, node.config(self._work), where=node.name)
        num_labelled = len(labelled_pairs(judge.language, judge.labelled_file))
        num_styles = len(_styles(_parent(node, "rewrites")))
        written = (judge.sample * num_styles + num_labelled) * judge.max_new_tokens
        arithmetic = (f"({judge.sample:,} pairs x {num_styles} styles + {num_labelled:,}) x at most "
                      f"{judge.max_new_tokens:,} tokens")
        if "model" not in node.inputs:
            return Cost(0, 0, f"{arithmetic}, at an endpoint")
        speed = self._writing_speed(node)
        return Cost(written / speed / 3600, 0, f"{arithmetic} = {_short(written)} / {speed:,.0f} a second and GPU")

    def _writing_speed(self, node: Node) -> float:
        """Tokens a second that a GPU writes with a node's model."""
        billions = self._parameters(_parent(node, "model")) / 1e9
        return self._settings.rewrite_tokens_per_second * _REWRITER_BILLION / billions

    def _tokenize(self, node: Node) -> Cost:
        tokens, size = self._tokens(node), self._settings.bytes_per_token_id
        return Cost(0, tokens * size, f"{_short(tokens)} tokens x {size} B")

    def _run(self, node: Node) -> Cost:
        config, parameters = self._run_config(node), self._parameters(node)
        begins = self._run_config(trunk).train_iters if (trunk := trunk_of(node)) else 0
        tokens = (config.train_iters - begins) * config.tokens_per_iteration
        interval = config.iterations(config.checkpoint.interval_tokens) or config.train_iters
        kept_iterations = {iteration for iteration in config.kept_iterations if iteration > begins}
        saved = len(kept_iterations | {config.train_iters, *(
            iteration for iteration in range(interval, config.train_iters, interval) if iteration > begins)})
        kept = min(saved, len(kept_iterations) + config.checkpoint.keep_last)
        tflops, size = self._settings.train_tflops_per_gpu, self._settings.checkpoint_bytes_per_parameter
        return Cost(6 * parameters * tokens / (tflops * 1e12) / 3600, kept * parameters * size,
                    f"6 x {_short(parameters)} x {_short(tokens)} tokens / {tflops:g} TFLOP/s; "
                    f"{kept} checkpoints x {_short(parameters)} x {size:g} B")

    def _model(self, node: Node) -> Cost:
        parameters, size = self._parameters(node), self._settings.model_bytes_per_parameter
        return Cost(0, parameters * size, f"{_short(parameters)} x {size:g} B")

    def _evaluate(self, node: Node) -> Cost:
        readings = len(node.deciding.get("scoring", ["generate"]))
        parameters, tokens = self._parameters(node), readings * self._settings.evaluate_prompt_tokens
        tflops = self._settings.evaluate_tflops_per_gpu
        return Cost(2 * parameters * tokens / (tflops * 1e12) / 3600, 0,
                    f"2 x {_short(parameters)} x {_short(tokens)} tokens / {tflops:g} TFLOP/s")

    def _run_config(self, node: Node) -> RunConfig:
        return validate(RunConfig, node.config(self._work) | {"output": "."}, where=node.name)


def trunk_of(run: Node) -> Node | None:
    """The run that a branch leaves."""
    checkpoint = run.inputs.get("start.checkpoint")
    return checkpoint.node if isinstance(checkpoint, Inside) else None


def _sources(run: Node) -> dict[str, Node]:
    """Name -> tokenized source of a run's blend."""
    nodes = {name: run.inputs[f"data.sources.{name}.path"] for name in run.settings["data"]["sources"]}
    return {name: node for name, node in nodes.items() if isinstance(node, Node)}


def reads_originals_alone(run: Node) -> bool:
    """Whether all sources of a run are text as it was selected, so that their sizes are known before they are made."""
    return all(_parent(source, "documents").stage == "select" for source in _sources(run).values())


def describe_blend(plan: BlendPlan) -> str:
    """`high 10B (1.00 epochs) + high_rewrites 30B (1.00 epochs)`."""
    return " + ".join(f"{source.name} {_short(source.num_samples * plan.seq_length)} ({source.epochs:.2f} epochs)"
                      for source in plan.sources)


def _styles(node: Node) -> list[str]:
    node = _parent(node, "rewrites") if node.stage == "originals" else node
    return node.settings.get("styles", RewriteSettings.model_fields["styles"].default)


def _parent(node: Node, key: str) -> Node:
    value: Any = node.inputs[key]
    return value.node if isinstance(value, Inside) else value


def _short(value: float) -> str:
    return f"{value / 1e9:.3g}B" if value >= 1e7 else f"{value:,.0f}"
