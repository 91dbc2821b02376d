"""Answers that survive an interruption: a language model that writes down what it has answered.

Requests are sorted by length and cut into batches once, for the whole list, so that a batch holds the same requests
whether or not the run was interrupted: what a model answers may depend on its batch in the last bits. A batch counts
as answered when all of its answers are in the journal.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM

from megatron_ext.progress import Progress

Key = tuple[str, int, str]


class JournalingLM(LM):
    """Wraps a model of any backend.

    Args:
        lm: does the generating, one batch a call.
        journal: JSONL file of answers; made if it is not there.
        batch_size: requests in a batch.
    """

    def __init__(self, lm: LM, journal: Path, batch_size: int) -> None:
        super().__init__()
        self.lm = lm
        self.journal = journal
        self.batch_size = batch_size

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Answers in the order of the requests; those in the journal are not asked for again."""
        answers = read_journal(self.journal)
        batches = cut_into_batches(requests, self.batch_size)
        unanswered = [batch for batch in batches if any(key_of(request) not in answers for request in batch)]
        already_done = len(requests) - sum(map(len, unanswered))
        progress = Progress("evaluate", len(requests), "examples", already_done=already_done)
        with open(self.journal, "a", encoding="utf-8") as file:
            for batch in unanswered:
                outputs = self.lm.generate_until(batch, disable_tqdm=True)
                rows = {key_of(request): output for request, output in zip(batch, outputs, strict=True)}
                _append(file, rows)
                answers.update(rows)
                progress.advance(len(batch))
        return [answers[key_of(request)] for request in requests]

    def loglikelihood(self, requests: list[Instance]) -> NoReturn:
        """No task of PoETa V2 asks for it."""
        raise NotImplementedError

    def loglikelihood_rolling(self, requests: list[Instance]) -> NoReturn:
        """No task of PoETa V2 asks for it."""
        raise NotImplementedError


def cut_into_batches(requests: Sequence[Instance], batch_size: int) -> list[list[Instance]]:
    """Batches of prompts of similar length, the longest first: they show at once whether memory suffices."""
    ordered = sorted(requests, key=lambda request: (-len(request.args[0]), key_of(request)))
    return [ordered[start:start + batch_size] for start in range(0, len(ordered), batch_size)]


def key_of(request: Instance) -> Key:
    """What an answer is filed under: task, document, sha256 of the prompt."""
    return request.task_name, request.doc_id, hashlib.sha256(request.args[0].encode()).hexdigest()


def read_journal(path: Path) -> dict[Key, str]:
    """The answers in a journal. What follows the last whole line, of a write that was interrupted, is cut off."""
    if not path.exists():
        return {}
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        os.truncate(path, len(whole))
    rows = [json.loads(line) for line in whole.splitlines()]
    return {(row["task"], row["doc_id"], row["prompt_sha256"]): row["output"] for row in rows}


def _append(file: Any, rows: dict[Key, str]) -> None:
    """Durable when it returns."""
    for (task, doc_id, prompt_sha256), output in rows.items():
        row = {"task": task, "doc_id": doc_id, "prompt_sha256": prompt_sha256, "output": output}
        file.write(json.dumps(row, ensure_ascii=False) + "\n")
    file.flush()
    os.fsync(file.fileno())
