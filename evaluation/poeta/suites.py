"""Suites of the harness' own tasks beside PoETa V2, answered by the same model, loaded once, in the same journal."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evaluation.poeta.table import task_names
from evaluation.suites.catalogue import suite_problems
from evaluation.suites.evaluate import SUITE_EXAMPLES, SUITES, evaluate_suite, example_line
from evaluation.suites.settings import SuiteSettings
from megatron_ext.errors import UserError
from megatron_ext.files import write_json, write_text

if TYPE_CHECKING:
    from evaluation.poeta.journal import JournalingLM


def check_suites(suites: Mapping[str, SuiteSettings]) -> None:
    """Raise UserError that lists every name of a suite that the harness does not know, or that PoETa V2 has, too."""
    if problems := list(suite_problems(suites, task_names())):
        raise UserError("; ".join(problems))


def evaluate_suites(suites: Mapping[str, SuiteSettings], lm: JournalingLM, model_args: Mapping[str, Any],
                    folder: Path) -> None:
    """Write `suite_examples.jsonl` and `suites.json`.

    Args:
        lm: whose model is used as the harness uses it, and whose journal takes the answers.
        model_args: arguments of the backend.
    """
    from evaluation.poeta.journal import JournalingHarnessLM

    harness_lm = JournalingHarnessLM(lambda: lm.lm.as_harness_model(model_args), lm.journal, lm.batch_size, lm.cache)
    found = {name: evaluate_suite(name, suite, harness_lm) for name, suite in suites.items()}
    write_text(folder / SUITE_EXAMPLES, "".join(example_line(row) for rows, _ in found.values() for row in rows))
    write_json(folder / SUITES, {name: told for name, (_, told) in found.items()})


def suite_scores(folder: Path) -> dict[str, dict[str, float]]:
    """Suite -> task -> its score, of an evaluation."""
    return {name: {task: one["score"] for task, one in suite["tasks"].items()}
            for name, suite in json.loads((folder / SUITES).read_text(encoding="utf-8")).items()}
