"""The stages of a study as a graph: each node is one program that makes one artifact.

A node's identity is a hash of its kind, its settings and the identities of its inputs. It is known before anything has
run, it names the output folder, and nodes that several conditions share are one node.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from megatron_ext.artifacts import hash_json, partial_folder, reference
from megatron_ext.config import ParallelConfig, RunConfig
from megatron_ext.errors import UserError
from megatron_ext.identity import PLACE, WATCHING, role_at, with_roles
from megatron_ext.settings import validate
from megatron_ext.study.config import REWRITES, StudyConfig, planned_run
from megatron_ext.study.names import BASE, NEUTRAL, NPM
from megatron_ext.study.older import made_by_older_version
from megatron_ext.study.programs import settings_of

STAGES = ("model", "select", "rewrite", "originals", "tokenize", "overlap", "import", "run", "validate", "export",
          "evaluate", "compare")


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
        """Hash of what is asked for: the deciding settings, defaults included, and the inputs' identities."""
        read = {key: _identity(value) for key, value in self.inputs.items()
                if role_at(settings_of(self.program), key) is not WATCHING}
        named = {key: _identity_of_place(value) for key, value in self.named.items()}
        return hash_json([self.kind, self.program, self.deciding, read | named])

    @cached_property
    def deciding(self) -> dict[str, Any]:
        """The settings that decide what the program makes."""
        return with_roles(validate(settings_of(self.program), self._filled_in(), where=self.name))

    @cached_property
    def named(self) -> dict[str, Any]:
        """Places among the settings instead of the inputs: of prompts, of raw data, or a model's id on a hub."""
        return {key: value for key, value in self.settings.items()
                if value is not None and key not in self.inputs and role_at(settings_of(self.program), key) is PLACE}

    def _filled_in(self) -> dict[str, Any]:
        values = self._with_places(lambda value: ["."] * len(value) if isinstance(value, list) else ".")
        return values | {"output": "."} if "output" in settings_of(self.program).model_fields else values

    @property
    def label(self) -> str:
        """Name for its files and jobs, unique among all studies of a work folder."""
        return f"{self.name.replace('/', '.')}-{self.identity[:8]}"

    @property
    def parents(self) -> list[Node]:
        """Nodes that must be finished before."""
        return [*self.after, *_nodes_of(self)]

    def output(self, work: Path) -> Path:
        """Folder of the artifact: under this identity, or one that an older version made of the same request."""
        folder = work / f"{self.name}-{self.identity[:8]}"
        if folder.exists() or partial_folder(folder).exists():
            return folder
        return made_by_older_version(self, work) or folder

    def config(self, work: Path) -> dict[str, Any]:
        """The program's settings with the places of its inputs filled in."""
        return self._with_places(lambda value: _places(value, work))

    def _with_places(self, place: Callable[[Input], Any]) -> dict[str, Any]:
        values = copy.deepcopy(self.settings)
        for key, value in self.inputs.items():
            *sections, last = key.split(".")
            target = values
            for section in sections:
                target = target.setdefault(section, {})
            target[last] = place(value)
        return values

    def input_references(self, work: Path) -> set[tuple[str, str]] | None:
        """(kind, content hash) of everything that the node reads; None when some of it is not there."""
        places = [Path(place) for value in self.inputs.values() for place in _flat_places(value, work)]
        return {tuple(reference(place).values()) for place in places} if all(map(Path.exists, places)) else None


Input = Node | Inside | Path | list[Node]


def build_graph(study: StudyConfig) -> list[Node]:
    """All nodes of a study in the order of the stages, every node after its inputs."""
    base = _model_node(BASE, study.base_model)
    tokenized = _source_nodes(study, base)
    parity = _parity_node(study, base)
    evaluations = {f"evaluations.{BASE}": [_evaluation_node(study, BASE, base)]}
    curves: dict[str, list[Node]] = {}
    checkpoints: dict[str, Inside] = {}
    for condition in study.conditions:
        points: dict[int, list[Node]] = {}
        for seed in study.seeds:
            run = _run_node(study, condition, seed, base, tokenized, parity)
            tokens_per_iteration = planned_run(study, condition, seed).tokens_per_iteration
            for place, iteration in _evaluated(study, f"{condition}/seed{seed}", condition, seed):
                checkpoints[place] = Inside(run, f"checkpoints/{checkpoint_name(iteration)}")
                node = _evaluation_node(study, place, _export_node(place, checkpoints[place]))
                points.setdefault(iteration * tokens_per_iteration, []).append(node)
        evaluations[f"evaluations.{condition}"] = points[max(points)]
        if len(points) > 1:
            curves |= {f"along_training.{condition}.{tokens}": nodes for tokens, nodes in points.items()}
    measured: dict[str, dict[str, Input]] = {BASE: {"model": base}} | {
        place: {"checkpoint": checkpoint} for place, checkpoint in checkpoints.items()}
    texts = {name: tokenized[name] for name in study.held_out} | _neutral_nodes(study, base)
    held_out = {place: _held_out_node(study, place, model, texts) for place, model in measured.items()} if texts else {}
    overlap = _overlap_node(study, tokenized) if texts else None
    comparison = _comparison(study, evaluations | curves)
    wanted = [*tokenized.values(), comparison]  # a source that no condition uses is still wanted
    wanted += [*held_out.values(), *([_held_out_comparison(study, held_out, overlap)] if overlap else [])]
    return in_order(wanted)


def _comparison(study: StudyConfig, evaluations: dict[str, list[Node]]) -> Node:
    """The conditions on PoETa V2, with models beside them that tell what a task can show."""
    evaluation = study.evaluation
    outside = {f"outside.{name}": _evaluation_node(study, f"outside/{name}", _model_node(f"outside-{name}", model))
               for name, model in evaluation.outside.items()}
    settings = evaluation.model_dump(include={"baseline", "interactions", "matched_by"})
    if evaluation.primary not in (NPM, *study.measured_texts):
        settings["primary"] = evaluation.primary
    return Node("compare/conditions", "comparison", "evaluation.compare", settings, {**evaluations, **outside})


def in_order(wanted: Iterable[Node]) -> list[Node]:
    """These nodes and all that they need, each once, in the order of the stages."""
    nodes = {node.identity: node for root in wanted for node in _ancestors(root)}
    return sorted(nodes.values(), key=lambda node: STAGES.index(node.stage))


def kept_iterations(study: StudyConfig, config: RunConfig) -> list[int]:
    """Iterations before the last whose checkpoints the study evaluates.

    Raises UserError when the study asks for all checkpoints of a run that has no interval.
    """
    wanted = study.evaluation.checkpoints
    if wanted == "last":
        return []
    if wanted == "all":
        interval = config.iterations(config.checkpoint.interval_tokens)
        if interval is None:
            raise UserError("evaluation.checkpoints = all needs run.checkpoint.interval_tokens")
        return list(range(interval, config.train_iters - interval // 2, interval))  # none just before the last
    asked = {config.iterations(tokens) or 1 for tokens in wanted}
    return sorted(iteration for iteration in asked if iteration < config.train_iters)


def _evaluated(study: StudyConfig, name: str, condition: str, seed: int) -> list[tuple[str, int]]:
    """(name below export/ and evaluate/, iteration) of each checkpoint of a run that is evaluated, in their order."""
    config = planned_run(study, condition, seed)
    earlier = [(f"{name}/{checkpoint_name(iteration)}", iteration) for iteration in kept_iterations(study, config)]
    return [*earlier, (name, config.train_iters)]


def checkpoint_name(iteration: int) -> str:
    """Folder of a checkpoint below a run's `checkpoints`."""
    return f"iter_{iteration:07d}"


def _source_nodes(study: StudyConfig, base: Node) -> dict[str, Node]:
    """Tokenized sources by name: each subset's original text, its rewrites, originals of these, single styles."""
    tokenizer = _tokenizer_node(study, base)
    selections = {name: _selection_node(study, name, tokenizer) for name in study.subsets}
    rewrites = {source: _rewrite_node(study, subset, rewriter, selections[subset], base, tokenizer)
                for source, (subset, rewriter) in study.rewritten_sources.items()}

    def tokenize(name: str, documents: Node, **settings: Any) -> Node:
        return Node(f"tokenize/{name}", "tokenized", "tools.tokenize_corpus", {**study.tokenize, **settings},
                    {"documents": documents, "tokenizer": tokenizer})

    originals = {name: Node(f"originals/{name}", "rewritten_originals", "tools.take_originals", {},
                            {"rewrites": rewrites[source], "tokenizer": tokenizer})
                 for name, source in study.used_originals.items()}
    parts = {name: tokenize(name, (rewrites | originals)[part.rewrites], styles=part.styles)
             for name, part in study.style_sources.items()}
    return {name: tokenize(name, node) for name, node in (selections | rewrites | originals).items()} | parts


def _neutral_nodes(study: StudyConfig, base: Node) -> dict[str, Node]:
    """The text that no condition is trained on, tokenized to be measured alone."""
    text = study.validation
    if text.neutral is None:
        return {}
    settings = {**study.tokenize, "valid_fraction": 1.0, "text_column": text.text_column, "id_column": text.id_column}
    return {NEUTRAL: Node(f"tokenize/{NEUTRAL}", "tokenized", "tools.tokenize_corpus", settings,
                          {"documents": text.neutral, "tokenizer": _tokenizer_node(study, base)})}


def _tokenizer_node(study: StudyConfig, base: Node) -> Node:
    return base if study.tokenizer in (None, study.base_model) else _model_node("tokenizer", study.tokenizer)


def _rewrite_node(study: StudyConfig, subset: str, rewriter: str, documents: Node, base: Node,
                  tokenizer: Node) -> Node:
    config = study.rewriters[rewriter]
    known = {study.base_model: base, study.tokenizer: tokenizer}
    name = "rewriter" if rewriter == REWRITES else rewriter
    return Node(f"rewrite/{subset if rewriter == REWRITES else f'{subset}_{rewriter}'}", "rewrites",
                "tools.rewrite_corpus", config.settings,
                {"documents": documents, "model": known.get(config.model) or _model_node(name, config.model),
                 "tokenizer": tokenizer})


def _model_node(name: str, model: str) -> Node:
    folder = Path(model).expanduser()
    if folder.is_dir():
        return Node(f"model/{name}", "hf_model", "tools.fetch_model", {}, {"model": folder})
    return Node(f"model/{name}", "hf_model", "tools.fetch_model", {"model": model})


def _selection_node(study: StudyConfig, subset: str, tokenizer: Node) -> Node:
    corpus, settings = study.corpus, study.subsets[subset]
    return Node(
        f"select/{subset}", "selection", "tools.select_corpus",
        {**study.select, "text_column": corpus.text_column, "id_column": corpus.id_column, "scores": corpus.scores,
         "rule": settings.rule, "budget_tokens": settings.budget_tokens},
        {"corpus": corpus.path, "tokenizer": tokenizer})


def _parity_node(study: StudyConfig, base: Node) -> Node:
    """Proof, with the layers and the layout of one model replica, that the imported weights give the Hugging Face
    model's logits."""
    config = planned_run(study, next(iter(study.conditions)), study.seeds[0])
    settings = {"parallel": config.parallel.model_dump(mode="json"),
                "layer_implementation": config.model.layer_implementation}
    return Node("import/parity", "parity", "tools.check_parity", settings, {"model": base},
                processes=_replica_size(config.parallel))


def _run_node(study: StudyConfig, condition: str, seed: int, base: Node, tokenized: dict[str, Node],
              parity: Node) -> Node:
    config = planned_run(study, condition, seed)
    settings = config.model_dump(mode="json", exclude={"output": True, "model": {"hf_folder"}})
    settings["checkpoint"]["keep_tokens"] = [*config.checkpoint.keep_tokens, *(
        iteration * config.tokens_per_iteration for iteration in kept_iterations(study, config))]
    inputs: dict[str, Input] = {"model.hf_folder": base}
    for name in config.data.sources:
        settings["data"]["sources"][name].pop("path")
        inputs[f"data.sources.{name}.path"] = tokenized[name]
    settings["validation"].pop("sources")
    if config.validation.interval_tokens and study.held_out:  # else a stage of its own tells the losses
        inputs |= {f"validation.sources.{name}": tokenized[name] for name in config.data.sources}
    return Node(f"run/{condition}/seed{seed}", "run", "megatron_ext.train", settings, inputs, (parity,),
                study.data_parallel_size * _replica_size(config.parallel))


def _held_out_node(study: StudyConfig, name: str, model: dict[str, Input], texts: dict[str, Node]) -> Node:
    """Held-out loss of a model on every text, at the layout of one replica; no run depends on it."""
    config = planned_run(study, next(iter(study.conditions)), study.seeds[0])
    parallel = config.parallel.model_copy(update={"context_parallel_size": 1})
    settings = {
        "parallel": parallel.model_dump(mode="json"), "dtype": config.model.dtype,
        "layer_implementation": config.model.layer_implementation, "micro_batch_size": config.train.micro_batch_size,
        "max_tokens_per_source": config.validation.max_tokens_per_source,
        "seq_length": config.data.seq_length}
    sources = {f"sources.{name}": text for name, text in texts.items()}
    return Node(f"validate/{name}", "held_out", "megatron_ext.validate", settings, {**model, **sources},
                processes=_replica_size(parallel))


def _overlap_node(study: StudyConfig, tokenized: dict[str, Node]) -> Node:
    """Which held-out documents the text of any condition holds, too."""
    documents = {name: node.inputs["documents"] for name, node in tokenized.items()}
    trained_on = list(dict.fromkeys(name for condition in study.conditions.values() for name in condition.sources))
    inputs = {f"training.{name}": documents[name] for name in trained_on}
    inputs |= {f"held_out.{name}": documents[name] for name in study.held_out}
    text = study.validation
    settings: dict[str, Any] = {"text_column": text.text_column, "id_column": text.id_column}
    if text.neutral is not None:
        inputs[f"neutral.{NEUTRAL}"] = text.neutral
    settings |= {key: study.tokenize[key] for key in ("valid_fraction", "split_seed") if key in study.tokenize}
    styles = {name: part.styles for name, part in study.style_sources.items() if name in (*trained_on, *study.held_out)}
    return Node("overlap/held_out", "overlap", "tools.find_overlap", settings | {"styles": styles}, inputs)


def _held_out_comparison(study: StudyConfig, held_out: dict[str, Node], overlap: Node) -> Node:
    """The conditions at the end of training, in bits a byte of every text."""
    inputs: dict[str, Input] = {f"held_out.{BASE}": [held_out[BASE]]} | {
        f"held_out.{condition}": [held_out[f"{condition}/seed{seed}"] for seed in study.seeds]
        for condition in study.conditions}
    inputs["overlap"] = overlap
    primary = study.evaluation.primary
    settings = {**study.evaluation.model_dump(include={"baseline", "interactions"}),
                "neutral": [name for name in study.measured_texts if name == NEUTRAL],
                "trained_on": {condition: study.trained_on(condition) for condition in study.conditions},
                "primary": primary if primary in study.measured_texts else None,
                "overlapping": study.validation.overlapping}
    return Node("compare/held_out", "held_out_comparison", "evaluation.compare_held_out", settings, inputs)


def _export_node(name: str, checkpoint: Inside) -> Node:
    return Node(f"export/{name}", "hf_model", "tools.export_hf", {}, {"checkpoint": checkpoint})


def _evaluation_node(study: StudyConfig, name: str, model: Node) -> Node:
    return Node(f"evaluate/{name}", "evaluation", "evaluation.run_poeta", study.evaluation.settings, {"model": model})


def _replica_size(parallel: ParallelConfig) -> int:
    """Processes of one model replica."""
    return (parallel.tensor_model_parallel_size * parallel.pipeline_model_parallel_size
            * parallel.context_parallel_size)


def _identity(value: Input) -> Any:
    match value:
        case list():
            return [node.identity for node in value]
        case Node():
            return value.identity
        case Inside():
            return [value.node.identity, value.folder]
        case Path():
            return reference(value)["content_hash"] if value.exists() else f"absent: {value}"


def _identity_of_place(value: Any) -> Any:
    """A place that the user names among a stage's settings (prompts, test items) by its bytes; a name as it is."""
    place = Path(str(value)).expanduser()
    return reference(place)["content_hash"] if place.exists() else str(value)


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


def _flat_places(value: Input, work: Path) -> list[str]:
    places = _places(value, work)
    return places if isinstance(places, list) else [places]


def _ancestors(node: Node, seen: set[str] | None = None) -> Iterator[Node]:
    """The node and all that it needs, inputs first, each once."""
    seen = set() if seen is None else seen
    for parent in node.parents:
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
