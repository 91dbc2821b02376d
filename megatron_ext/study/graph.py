"""The graph of a study: from its file to the nodes of all stages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from megatron_ext.config import ParallelConfig, RunConfig
from megatron_ext.errors import UserError
from megatron_ext.study.checkpoints import checkpoint_folder, evaluated, merged_iterations, used_iterations
from megatron_ext.study.config import REWRITES, StudyConfig, planned_run, planned_trunk
from megatron_ext.study.names import BASE, NEUTRAL, NPM, TRUNK
from megatron_ext.study.nodes import Input, Inside, Node, in_order
from megatron_ext.study.overlap_nodes import held_out_overlap_node, suite_overlap_node, suite_settings


def build_graph(study: StudyConfig) -> list[Node]:
    """All nodes of a study in the order of the stages, every node after its inputs."""
    models = _model_nodes(study)
    base = models[study.base_model]
    tokenized = _source_nodes(study, models)
    parity = _parity_node(study, base)
    trunk = _trunk_node(study, base, tokenized, parity)
    evaluations = {f"evaluations.{BASE}": [_evaluation_node(study, BASE, base)]}
    curves: dict[str, list[Node]] = {}
    checkpoints: dict[str, Inside | Node] = {}
    for condition in study.conditions:
        points: dict[int, list[Node]] = {}
        for seed in study.seeds:
            config, name = planned_run(study, condition, seed), f"{condition}/seed{seed}"
            run = _condition_node(study, condition, seed, base, tokenized, parity, trunk)
            merged = _merge_node(name, run, merged_iterations(study, condition, config))
            for place, iteration in evaluated(study, name, config):
                is_merged = merged is not None and place == name
                checkpoints[place] = merged if is_merged else Inside(run, checkpoint_folder(iteration))
                node = _evaluation_node(study, place, _export_node(place, checkpoints[place]))
                points.setdefault(iteration * config.tokens_per_iteration, []).append(node)
        if len(points) < study.evaluation.mean_of_last:
            raise UserError(f"evaluation.mean_of_last = {study.evaluation.mean_of_last}, but of {condition} "
                            f"{len(points)} checkpoints are evaluated; name more in evaluation.checkpoints")
        evaluations[f"evaluations.{condition}"] = points[max(points)]
        if len(points) > 1:
            curves |= {f"along_training.{condition}.{tokens}": nodes for tokens, nodes in points.items()}
    measured: dict[str, dict[str, Input]] = {BASE: {"model": base}} | {
        place: {"checkpoint": checkpoint} for place, checkpoint in checkpoints.items()}
    texts = {name: tokenized[name] for name in study.held_out} | _neutral_nodes(study, models)
    held_out = {place: _held_out_node(study, place, model, texts) for place, model in measured.items()} if texts else {}
    overlap = held_out_overlap_node(study, tokenized) if texts else None
    comparison = _comparison(study, evaluations | curves)
    # A source that no condition uses is still wanted.
    wanted = [*tokenized.values(), *_judge_nodes(study, models, tokenized), comparison]
    wanted += [*held_out.values(), *([_held_out_comparison(study, held_out, overlap)] if overlap else [])]
    wanted += [_suite_comparison(study, evaluations, tokenized)] if study.evaluation.suites else []
    return in_order(wanted)


def _comparison(study: StudyConfig, evaluations: dict[str, list[Node]]) -> Node:
    """The conditions on PoETa V2, with models beside them that tell what a task can show."""
    evaluation = study.evaluation
    outside = {f"outside.{name}": Node(f"evaluate/outside/{name}", "evaluation", "evaluation.run_poeta",
                                       evaluation.settings, {"model": _model_node(f"outside-{name}", model)})
               for name, model in evaluation.outside.items()}
    settings = evaluation.model_dump(include={"baseline", "interactions", "matched_by", "mean_of_last"})
    if evaluation.primary not in (NPM, *study.measured_texts, *evaluation.suites):
        settings["primary"] = evaluation.primary
    return Node("compare/conditions", "comparison", "evaluation.compare", settings, {**evaluations, **outside})


def _source_nodes(study: StudyConfig, models: dict[str, Node]) -> dict[str, Node]:
    """Tokenized sources by name: each subset's original text, its rewrites, originals of these, single styles."""
    tokenizer = _tokenizer_node(study, models)
    selections = {name: _selection_node(study, name, tokenizer) for name in study.subsets}
    rewrites = {source: _rewrite_node(study, subset, rewriter, selections[subset], models)
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


def _neutral_nodes(study: StudyConfig, models: dict[str, Node]) -> dict[str, Node]:
    """The text that no condition is trained on, tokenized to be measured alone."""
    text = study.validation
    if text.neutral is None:
        return {}
    settings = {**study.tokenize, "valid_fraction": 1.0, "text_column": text.text_column, "id_column": text.id_column}
    return {NEUTRAL: Node(f"tokenize/{NEUTRAL}", "tokenized", "tools.tokenize_corpus", settings,
                          {"documents": text.neutral, "tokenizer": _tokenizer_node(study, models)})}


def _model_nodes(study: StudyConfig) -> dict[str, Node]:
    """Model, as the study names it -> the node that has it, which is named by its first use, whatever else uses it."""
    rewriters = [("rewriter" if name == REWRITES else name, one.model) for name, one in study.rewriters.items()]
    used = [(BASE, study.base_model), ("tokenizer", study.tokenizer), *rewriters,
            ("judge", study.judge and study.judge.model)]
    nodes: dict[str, Node] = {}
    by_identity: dict[str, Node] = {}
    for name, model in used:
        if model and model not in nodes:
            node = _model_node(name, model)
            nodes[model] = by_identity.setdefault(node.identity, node)
    return nodes


def _tokenizer_node(study: StudyConfig, models: dict[str, Node]) -> Node:
    return models[study.tokenizer or study.base_model]


def _rewrite_node(study: StudyConfig, subset: str, rewriter: str, documents: Node, models: dict[str, Node]) -> Node:
    config = study.rewriters[rewriter]
    return Node(f"rewrite/{subset if rewriter == REWRITES else f'{subset}_{rewriter}'}", "rewrites",
                "tools.rewrite_corpus", config.settings,
                {"documents": documents, "model": models[config.model], "tokenizer": _tokenizer_node(study, models)})


def _judge_nodes(study: StudyConfig, models: dict[str, Node], tokenized: dict[str, Node]) -> list[Node]:
    """The judge's look at a sample of each rewriting, where the study has one."""
    if study.judge is None:
        return []
    model = {"model": models[study.judge.model]} if study.judge.model else {}
    rewrites = [tokenized[source].inputs["documents"] for source in study.rewritten_sources]
    return [Node(node.name.replace("rewrite/", "judge/", 1), "judged_rewrites", "tools.judge_rewrites",
                 study.judge.settings, {"rewrites": node, **model})
            for node in rewrites if isinstance(node, Node)]


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


def _condition_node(study: StudyConfig, condition: str, seed: int, base: Node, tokenized: dict[str, Node],
                    parity: Node, trunk: Node | None) -> Node:
    config = planned_run(study, condition, seed)
    used = {iteration * config.tokens_per_iteration for iteration in used_iterations(study, condition, config)}
    kept = sorted({*config.checkpoint.keep_tokens, *used})
    left = Inside(trunk, checkpoint_folder(planned_trunk(study).train_iters)) if trunk else None
    return _run_node(study, f"run/{condition}/seed{seed}", config, base, tokenized, parity, kept, left)


def _trunk_node(study: StudyConfig, base: Node, tokenized: dict[str, Node], parity: Node) -> Node | None:
    """The run that all conditions leave at its end."""
    if study.trunk is None:
        return None
    config = planned_trunk(study)
    kept = [tokens for tokens in config.checkpoint.keep_tokens if config.iterations_of(tokens) <= config.train_iters]
    return _run_node(study, f"run/{TRUNK}/seed{config.train.seed}", config, base, tokenized, parity, kept)


def _run_node(study: StudyConfig, name: str, config: RunConfig, base: Node, tokenized: dict[str, Node], parity: Node,
              keep_tokens: list[int], start: Inside | None = None) -> Node:
    settings = config.model_dump(mode="json", exclude={"output": True, "model": {"hf_folder"}})
    settings["checkpoint"]["keep_tokens"] = keep_tokens
    inputs: dict[str, Input] = {"model.hf_folder": base}
    for source in config.data.sources:
        settings["data"]["sources"][source].pop("path")
        inputs[f"data.sources.{source}.path"] = tokenized[source]
    if start is not None:
        settings["start"].pop("checkpoint")
        inputs["start.checkpoint"] = start
    settings["validation"].pop("sources")
    if config.validation.interval_tokens and study.held_out:  # else a stage of its own tells the losses
        inputs |= {f"validation.sources.{source}": tokenized[source] for source in config.data.sources}
    return Node(name, "run", "megatron_ext.train", settings, inputs, (parity,),
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


def _merge_node(name: str, run: Node, iterations: list[int]) -> Node | None:
    """The mean of checkpoints of a run, in the place of its last one; None where none are merged."""
    checkpoints = [Inside(run, checkpoint_folder(iteration)) for iteration in iterations]
    if not checkpoints:
        return None
    return Node(f"merge/{name}", "checkpoint", "tools.merge_checkpoints", {}, {"checkpoints": checkpoints})


def _export_node(name: str, checkpoint: Inside | Node) -> Node:
    return Node(f"export/{name}", "hf_model", "tools.export_hf", {}, {"checkpoint": checkpoint})


def _evaluation_node(study: StudyConfig, name: str, model: Node) -> Node:
    suites, folders = suite_settings(study)
    settings = study.evaluation.settings | ({"suites": suites} if suites else {})
    return Node(f"evaluate/{name}", "evaluation", "evaluation.run_poeta", settings, {"model": model, **folders})


def _suite_comparison(study: StudyConfig, evaluations: dict[str, list[Node]], tokenized: dict[str, Node]) -> Node:
    """The conditions on the suites, with what training text holds of their items."""
    evaluation = study.evaluation
    settings = evaluation.model_dump(include={"baseline", "interactions"})
    if evaluation.primary in evaluation.suites:
        settings["primary"] = evaluation.primary
    inputs: dict[str, Input] = {**evaluations, "overlap": suite_overlap_node(study, tokenized)}
    return Node("compare/suites", "suite_comparison", "evaluation.compare_suites", settings, inputs)


def _replica_size(parallel: ParallelConfig) -> int:
    """Processes of one model replica."""
    return (parallel.tensor_model_parallel_size * parallel.pipeline_model_parallel_size
            * parallel.context_parallel_size)
