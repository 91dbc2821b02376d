"""A study file with two conditions of 20 iterations, and its graph."""

import yaml

from megatron_ext.settings import overlay
from megatron_ext.study.config import load_study
from megatron_ext.study.graph import build_graph

ITERATION = 2 * 64
"""Tokens of one."""


def study_loader(folder, **more):
    """load(*overrides, **sections) -> the study, with its file in a folder; `more` sections are overlaid always."""
    (folder / "corpus.jsonl").write_text('{"id": "1", "text": "olá", "stem_score": 3.0, "edu_score": 3.0}\n')
    values = overlay({
        "name": "tiny", "corpus": {"path": str(folder / "corpus.jsonl")}, "base_model": "some/model",
        "subsets": {"high": {"rule": "stem > 2.5", "budget_tokens": 10_000},
                    "low": {"rule": "stem < 2", "budget_tokens": 10_000}},
        "tokenize": {"valid_fraction": 0.1},
        "run": {"train": {"budget_tokens": 20 * ITERATION, "global_batch_size": 2}, "data": {"seq_length": 64},
                "schedule": {"style": "WSD", "decay_iters": 4}, "checkpoint": {"interval_tokens": 4 * ITERATION}},
        "conditions": {"low": {"sources": {"low": {"fill": True}}}, "high": {"sources": {"high": {"fill": True}}}},
        "evaluation": {"baseline": "low"}, "cost": {"billion_parameters": {"some/model": 100}},
    }, more)

    def load(*overrides, **sections):
        (folder / "study.yaml").write_text(yaml.safe_dump({**values, **sections}))
        return load_study(folder / "study.yaml", list(overrides))

    return load


def by_name(study):
    return {node.name: node for node in build_graph(study)}
