"""The stages of a study as a graph: each node is one program that makes one artifact.

A node's identity is a hash of its kind, its settings and the identities of its inputs. It is known before anything has
run, it names the output folder, and nodes that several conditions share are one node.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from megatron_ext.artifacts import hash_json, reference
from megatron_ext.config import RunConfig
from megatron_ext.settings import validate
from megatron_ext.study.config import BASE, REWRITES_SUFFIX, StudyConfig, run_config

STAGES = ("model", "select", "rewrite", "tokenize", "import", "run", "export", "evaluate", "compare")


@dataclass(frozen=True)
class Inside:
    """A folder inside a node's output, e.g. the last checkpoint of a run."""

    node: Node
    folder: str


@dataclass(frozen=True)
class Node:
    """One stage: a program, its settings, and where its inputs come from."""

    name: str
    """E.g. `select/high`; also the place of the output below the study's folder."""
    kind: str
    """Kind of the artifact that it makes."""
    program: str
    """Python module that is run."""
    settings: dict[str, Any]
    """Settings of the program, without places."""
    inputs: dict[str, Input] = field(default_factory=dict)
    """Setting that takes a place (dots for sections) -> what is read there."""
    after: tuple[Node, ...] = ()
    """Nodes that must have succeeded before, though nothing of them is read."""
    processes: int = 1
    """More than one, or a program that needs torch.distributed: started by torchrun."""

    @property
    def stage(self) -> str:
        """The stage that it belongs to: first part of its name."""
        return self.name.split("/")[0]

    @cached_property
    def identity(self) -> str:
        """Hash of what is asked for; equal requests have equal identities."""
        return hash_json([self.kind, self.program, self.settings,
                          {key: _identity(value) for key, value in self.inputs.items()}])

    def output(self, work: Path) -> Path:
        """Folder of the artifact."""
        return work / f"{self.name}-{self.identity[:8]}"

    def config(self, work: Path) -> dict[str, Any]:
        """The program's settings with the places of its inputs filled in."""
        values = copy.deepcopy(self.settings)
        for key, value in self.inputs.items():
            *sections, last = key.split(".")
            target = values
            for section in sections:
                target = target.setdefault(section, {})
            target[last] = _places(value, work)
        return values


Input = Node | Inside | Path | list[Node]


def build_graph(study: StudyConfig) -> list[Node]:
    """All nodes of a study in the order of the stages, every node after its inputs."""
    base = _model_node(BASE, study.base_model)
    tokenized = _source_nodes(study, base)
    parity = _parity_node(study, base, tokenized)
    evaluations = {BASE: [_evaluation_node(study, BASE, base)]}
    for condition in study.conditions:
        runs = {seed: _run_node(study, condition, seed, base, tokenized, parity) for seed in study.seeds}
        exports = {seed: _export_node(condition, seed, run) for seed, run in runs.items()}
        evaluations[condition] = [_evaluation_node(study, f"{condition}/seed{seed}", export)
                                  for seed, export in exports.items()]
    comparison = Node("compare/conditions", "comparison", "evaluation.compare",
                      {"baseline": study.evaluation.baseline, "interactions": study.evaluation.interactions},
                      {f"evaluations.{name}": nodes for name, nodes in evaluations.items()})
    wanted = [*tokenized.values(), comparison]  # a source that no condition uses is still wanted
    nodes = {node.identity: node for root in wanted for node in _ancestors(root)}
    return sorted(nodes.values(), key=lambda node: STAGES.index(node.stage))


def _source_nodes(study: StudyConfig, base: Node) -> dict[str, Node]:
    """Tokenized sources by name: each subset's original text and its rewrites."""
    documents = {name: _selection_node(study, name, base) for name in study.subsets}
    if study.rewriter:
        rewriter = base if study.rewriter.model == study.base_model else _model_node("rewriter", study.rewriter.model)
        documents |= {
            subset + REWRITES_SUFFIX: Node(
                f"rewrite/{subset}", "rewrites", "tools.rewrite_corpus", study.rewriter.settings,
                {"documents": documents[subset], "model": rewriter, "tokenizer": base})
            for subset in study.rewriter.subsets
        }
    return {
        name: Node(f"tokenize/{name}", "tokenized", "tools.tokenize_corpus", study.tokenize,
                   {"documents": node, "tokenizer": base})
        for name, node in documents.items()
    }


def _model_node(name: str, model: str) -> Node:
    folder = Path(model).expanduser()
    if folder.is_dir():
        return Node(f"model/{name}", "hf_model", "tools.fetch_model", {}, {"model": folder})
    return Node(f"model/{name}", "hf_model", "tools.fetch_model", {"model": model})


def _selection_node(study: StudyConfig, subset: str, base: Node) -> Node:
    corpus, settings = study.corpus, study.subsets[subset]
    return Node(
        f"select/{subset}", "selection", "tools.select_corpus",
        {**study.select, "text_column": corpus.text_column, "id_column": corpus.id_column, "scores": corpus.scores,
         "rule": settings.rule, "budget_tokens": settings.budget_tokens},
        {"corpus": corpus.path, "tokenizer": base})


def _parity_node(study: StudyConfig, base: Node, tokenized: dict[str, Node]) -> Node:
    """Proof, at the training layout, that the imported weights give the logits of the Hugging Face model."""
    config = _example_run(study, tokenized)
    parallel = config.parallel.model_dump(mode="json")
    return Node("import/parity", "parity", "tools.check_parity", {"parallel": parallel}, {"model": base},
                processes=_processes(study))


def _run_node(study: StudyConfig, condition: str, seed: int, base: Node, tokenized: dict[str, Node],
              parity: Node) -> Node:
    places = {name: Path(name) for name in tokenized}
    config = run_config(study, condition, seed, output=Path(), hf_folder=Path(), tokenized=places)
    settings = config.model_dump(mode="json", exclude={"output": True, "model": {"hf_folder"}})
    inputs: dict[str, Input] = {"model.hf_folder": base}
    for name in config.data.sources:
        settings["data"]["sources"][name].pop("path")
        inputs[f"data.sources.{name}.path"] = tokenized[name]
    for name in settings["validation"].pop("sources"):
        inputs[f"validation.sources.{name}"] = tokenized[name]
    return Node(f"run/{condition}/seed{seed}", "run", "megatron_ext.train", settings, inputs, (parity,),
                _processes(study))


def _export_node(condition: str, seed: int, run: Node) -> Node:
    last = validate(RunConfig, run.config(Path()) | {"output": "."}, where=run.name).train_iters
    return Node(f"export/{condition}/seed{seed}", "hf_model", "tools.export_hf", {},
                {"checkpoint": Inside(run, f"checkpoints/iter_{last:07d}")})


def _evaluation_node(study: StudyConfig, name: str, model: Node) -> Node:
    return Node(f"evaluate/{name}", "evaluation", "evaluation.run_poeta", study.evaluation.settings, {"model": model})


def _example_run(study: StudyConfig, tokenized: dict[str, Node]) -> Any:
    condition = next(iter(study.conditions))
    places = {name: Path(name) for name in tokenized}
    return run_config(study, condition, study.seeds[0], output=Path(), hf_folder=Path(), tokenized=places)


def _processes(study: StudyConfig) -> int:
    parallel = study.run.get("parallel", {})
    return (study.data_parallel_size * parallel.get("tensor_model_parallel_size", 1)
            * parallel.get("pipeline_model_parallel_size", 1))


def _identity(value: Input) -> Any:
    match value:
        case list():
            return [node.identity for node in value]
        case Node():
            return value.identity
        case Inside():
            return [value.node.identity, value.folder]
        case Path():
            return reference(value)["content_hash"]


def _places(value: Input, work: Path) -> Any:
    match value:
        case list():
            return [str(node.output(work)) for node in value]
        case Node():
            return str(value.output(work))
        case Inside():
            return str(value.node.output(work) / value.folder)
        case Path():
            return str(value)


def _ancestors(node: Node, seen: set[str] | None = None) -> Iterator[Node]:
    """The node and all that it needs, inputs first, each once."""
    seen = set() if seen is None else seen
    for parent in [*node.after, *_nodes_of(node)]:
        yield from _ancestors(parent, seen)
    if node.identity not in seen:
        seen.add(node.identity)
        yield node


def _nodes_of(node: Node) -> Iterator[Node]:
    for value in node.inputs.values():
        match value:
            case list():
                yield from value
            case Node():
                yield value
            case Inside():
                yield value.node
