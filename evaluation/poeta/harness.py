"""The tasks as lm-evaluation-harness sees them.

`lm_eval_tasks` holds a YAML file a task for the harness' own command line:

    POETA_DATA=… lm_eval --include_path evaluation/poeta/lm_eval_tasks --tasks poeta_tweetsentbr_greedy …

The documents of such a task are the official requests, with their prompts built: the harness does not shuffle, draw
shots or join anything. Its `--limit` takes the first requests.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

from lm_eval.api import metrics as lm_eval_metrics
from lm_eval.api.instance import Instance
from lm_eval.api.task import Task, TaskConfig
from lm_eval.filters import build_filter_ensemble

from evaluation.poeta import metrics, sources
from evaluation.poeta.prepared import PreparedTask, prepare
from evaluation.poeta.prompts import Request
from evaluation.poeta.table import OFFICIAL_MAX_GEN_TOKS, task_spec
from evaluation.poeta.task import Task as PoetaTask

PREFIX = "poeta_"
STOP = "\n"
_LOWER_IS_BETTER = {"mse", "unknown_pred", "invalid"}


class HarnessTask(Task):
    """A task of PoETa V2 for the harness.

    Args:
        config: `task` is `poeta_` and the official name; `metadata` may hold `max_gen_toks` and `profile`.
        prepared: the task with its requests; None: find the raw data as `sources.find_raw_data` does.
    """

    VERSION = 2
    OUTPUT_TYPE = "generate_until"

    def __init__(self, config: Mapping[str, Any], prepared: PreparedTask | None = None) -> None:
        # Like the harness' own ConfigurableTask, no super().__init__(): it would download from a hub and make an
        # empty configuration.
        self.spec = task_spec(config["task"].removeprefix(PREFIX))
        self._given = prepared
        self._instances = None
        self._filters = [build_filter_ensemble("none", [["take_first", None]])]
        self.fewshot_rnd = None
        metadata = config.get("metadata") or {}
        max_gen_toks = metadata.get("max_gen_toks", OFFICIAL_MAX_GEN_TOKS)
        self._config = TaskConfig(
            task=config["task"],
            num_fewshot=self.spec.num_fewshot,
            output_type=self.OUTPUT_TYPE,
            generation_kwargs={"until": [STOP], "do_sample": False, "max_gen_toks": max_gen_toks},
            metadata={**metadata, "version": self.VERSION},
        )

    @cached_property
    def prepared(self) -> PreparedTask:
        """The task with its requests."""
        if self._given is not None:
            return self._given
        profile = self.config.metadata.get("profile", "official")
        return prepare(self.spec.name, profile, sources.find_raw_data([self.spec], None))

    @property
    def poeta_task(self) -> PoetaTask:
        """The task itself."""
        return self.prepared.task

    @property
    def requests(self) -> list[Request]:
        """The requests in the order of the protocol."""
        return self.prepared.requests

    @cached_property
    def _documents(self) -> list[dict[str, Any]]:
        return [
            {"doc_id": request.doc_id, "id": request.document.id, "prompt": request.prompt,
             "target": request.document.target}
            for request in self.requests
        ]

    def has_training_docs(self) -> bool:
        """Shots are in the prompts already."""
        return False

    def has_validation_docs(self) -> bool:
        """What is evaluated counts as test documents."""
        return False

    def has_test_docs(self) -> bool:
        """See `test_docs`."""
        return True

    def test_docs(self) -> list[dict[str, Any]]:
        """The requests as plain dictionaries, in official order."""
        return self._documents

    def doc_to_text(self, doc: Mapping[str, Any]) -> str:
        """The whole prompt."""
        return doc["prompt"]

    def doc_to_target(self, doc: Mapping[str, Any]) -> str:
        """The answer as a few-shot example would give it."""
        return doc["target"]

    def fewshot_context(self, doc: Mapping[str, Any], *args: Any, apply_chat_template: bool = False,
                        system_instruction: str | None = None, **kwargs: Any) -> str:
        """The prompt as it is."""
        if apply_chat_template or system_instruction:
            raise ValueError("PoETa V2 evaluates completions: no chat template, no system instruction")
        return doc["prompt"]

    def construct_requests(self, doc: Mapping[str, Any], ctx: str, *, metadata: tuple[Any, ...],
                           **kwargs: Any) -> Instance:
        """One greedy generation up to a line feed."""
        arguments = (ctx, dict(self.config.generation_kwargs))
        return Instance(request_type=self.OUTPUT_TYPE, doc=dict(doc), arguments=arguments, idx=0, metadata=metadata)

    def process_results(self, doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, Any]:
        """Per-example metrics that are aggregated, and `invalid`."""
        scores = self.poeta_task.score(self.requests[doc["doc_id"]].document, results[0])
        return {name: value for name, value in scores.items() if name in self.aggregation()}

    def aggregation(self) -> dict[str, Callable[[Sequence[Any]], float]]:
        """The task's aggregations; plain means are the harness' own, for which it reports standard errors."""
        aggregations = {**self.poeta_task.aggregations, "invalid": metrics.mean}
        return {
            name: lm_eval_metrics.mean if aggregation is metrics.mean else aggregation
            for name, aggregation in aggregations.items()
        }

    def higher_is_better(self) -> dict[str, bool]:
        """Errors and unknown answers are better low."""
        return {name: name not in _LOWER_IS_BETTER for name in self.aggregation()}
