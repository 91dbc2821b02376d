"""Answers that survive: a language model that writes down what it has answered.

The requests of a task are sorted by length and cut into batches once, so that a batch holds the same requests whatever
else is evaluated and whether or not the run was interrupted: what a model answers may depend on its batch in the last
bits. An answer is filed under the hashes of its prompt and of its batch, in the journal of the run, and at the end in a
cache that later evaluations of the same model with the same settings read. So a reused answer is the very answer that
would be given again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM

from megatron_ext.contents import hash_json
from megatron_ext.lease import LEASE, lease
from megatron_ext.progress import Progress

Key = tuple[str, str]
"""sha256 of the prompt, sha256 of the batch."""


class JournalingLM(LM):
    """Wraps a model of any backend.

    Args:
        lm: does the generating, one batch a call.
        journal: JSONL file of this run's answers; made if it is not there.
        batch_size: requests in a batch.
        cache: JSONL file of answers of the same model with the same settings from all runs; None: there is none.
    """

    def __init__(self, lm: LM, journal: Path, batch_size: int, cache: Path | None = None) -> None:
        super().__init__()
        self.lm = lm
        self.journal = journal
        self.batch_size = batch_size
        self.cache = cache

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Answers in the order of the requests; those that are on disk are not asked for again."""
        kept = read_answers(self.cache) if self.cache else {}
        answers = kept | read_answers(self.journal)
        batches = [(batch, keys_of(batch)) for batch in cut_into_batches(requests, self.batch_size)]
        unanswered = [(batch, keys) for batch, keys in batches if not all(key in answers for key in keys)]
        num_done = len(requests) - sum(len(batch) for batch, _ in unanswered)
        progress = Progress("evaluate", len(requests), "examples", already_done=num_done)
        for batch, keys in unanswered:
            outputs = self.lm.generate_until(batch, disable_tqdm=True)
            rows = dict(zip(keys, outputs, strict=True))
            append_answers(self.journal, rows)
            answers.update(rows)
            progress.advance(len(batch))
        if self.cache:
            wanted = {key: answers[key] for _, keys in batches for key in keys if key not in kept}
            with suppress(OSError):  # a cache that cannot be written only costs the time to answer again
                append_answers(self.cache, wanted)
        outputs_of = {id(request): answers[key] for batch, keys in batches
                      for request, key in zip(batch, keys, strict=True)}
        return [outputs_of[id(request)] for request in requests]

    def loglikelihood(self, requests: list[Instance]) -> NoReturn:
        """No task of PoETa V2 asks for it."""
        raise NotImplementedError

    def loglikelihood_rolling(self, requests: list[Instance]) -> NoReturn:
        """No task of PoETa V2 asks for it."""
        raise NotImplementedError


def cut_into_batches(requests: Sequence[Instance], batch_size: int) -> list[list[Instance]]:
    """Batches of one task's prompts of similar length, the longest first: they show at once whether memory suffices."""
    batches = []
    for task in dict.fromkeys(request.task_name for request in requests):
        own = [request for request in requests if request.task_name == task]
        own.sort(key=lambda request: (-len(request.args[0]), request.doc_id))
        batches += [own[start:start + batch_size] for start in range(0, len(own), batch_size)]
    return batches


def keys_of(batch: Sequence[Instance]) -> list[Key]:
    """What the answers of a batch are filed under."""
    prompts = [hashlib.sha256(request.args[0].encode()).hexdigest() for request in batch]
    whole = hashlib.sha256("\n".join(prompts).encode()).hexdigest()
    return [(prompt, whole) for prompt in prompts]


def read_answers(path: Path) -> dict[Key, str]:
    """The answers in a file. A line that was torn by an interruption, or changed since, does not count."""
    if not path.exists():
        return {}
    rows = [row for line in path.read_bytes().split(b"\n") if (row := _read_row(line))]
    return {(row["prompt_sha256"], row["batch_sha256"]): row["output"] for row in rows}


def _read_row(line: bytes) -> dict[str, str] | None:
    try:
        row = json.loads(line)
        return row if row.pop("row_sha256") == hash_json(row) else None
    except (ValueError, KeyError, AttributeError):
        return None


def append_answers(path: Path, answers: Mapping[Key, str]) -> None:
    """Add answers to a file, durably; other processes may do so at the same time. A torn last line is cut off first."""
    rows = [{"prompt_sha256": prompt, "batch_sha256": batch, "output": output}
            for (prompt, batch), output in answers.items()]
    lines = [json.dumps({**row, "row_sha256": hash_json(row)}, ensure_ascii=False) + "\n" for row in rows]
    path.parent.mkdir(parents=True, exist_ok=True)
    with lease(path.with_name(path.name + LEASE), path, wait=True), open(path, "a+b") as file:
        file.seek(0)
        content = file.read()
        file.truncate(content.rfind(b"\n") + 1)
        file.write("".join(lines).encode())
        file.flush()
        os.fsync(file.fileno())
