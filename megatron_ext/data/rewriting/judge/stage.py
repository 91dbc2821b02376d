"""The stage: ask the judge about a sample of accepted rewrites and about labelled pairs; every answer is noted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from megatron_ext.artifacts import Artifact, hash_json, write_json
from megatron_ext.data.documents import write_parquet
from megatron_ext.data.rewriting.engines.cleaning import clean_answers
from megatron_ext.data.rewriting.engines.interface import Request
from megatron_ext.data.rewriting.engines.open import open_engine
from megatron_ext.data.rewriting.guard import FailureGuard
from megatron_ext.data.rewriting.judge.answers import Judgement, read_answer
from megatron_ext.data.rewriting.judge.form import FINDINGS, Form, load_form
from megatron_ext.data.rewriting.judge.pairs import Pair, labelled_pairs, sample_pairs
from megatron_ext.data.rewriting.judge.settings import JudgeSettings
from megatron_ext.data.rewriting.judge.summary import SUMMARY_FILE, summarize
from megatron_ext.data.rewriting.request import model_identity, with_served_model
from megatron_ext.data.rewriting.window import Attempt, Journal, Window
from megatron_ext.progress import Progress
from megatron_ext.stage import make_artifact

KIND = "judged_rewrites"
PAIRS_FILE, JOURNAL_FILE = "pairs.parquet", "journal.jsonl"
_STATEMENTS = pa.list_(pa.string())
_SCHEMA = pa.schema({
    "label": pa.string(), "kind": pa.string(), "style": pa.string(), "document_id": pa.string(), "chunk": pa.int64(),
    "source": pa.string(), "text": pa.string(), "is_faithful": pa.bool_(),
    **dict.fromkeys(FINDINGS, _STATEMENTS), "reasons": _STATEMENTS, "attempt": pa.int64(), "answer": pa.string(),
    "problem": pa.string()})
_MEND = "An endpoint that knows no response_format needs structured_output=false"

JudgeAttempt = Attempt[Pair, Judgement]


def judge_rewrites(settings: JudgeSettings, output: Path) -> Artifact:
    """Make the artifact `output` (kind "judged_rewrites"); it goes on after an interruption, and asks nothing twice.

    It holds summary.json (see summarize), pairs.parquet (a row a pair: the last answer and what it says, or the reasons
    why it says nothing) and, beside the content, journal.jsonl with all answers.

    Raises UserError for a missing input, a model without chat template, and when too many requests fail.
    """
    rewrites = Artifact.open(settings.rewrites, kind="rewrites")
    settings = with_served_model(settings, output)
    labelled = labelled_pairs(settings.language, settings.labelled_file)
    more = {"form": load_form(settings.language).identity, "labelled": hash_json([vars(pair) for pair in labelled])}
    inputs = {name: path for name in ("rewrites", "model") if (path := getattr(settings, name)) is not None}
    return make_artifact(output, kind=KIND, settings=settings, more=more, inputs=inputs,
                         make=lambda folder: _make(settings, rewrites, labelled, folder),
                         beside=lambda name: name == JOURNAL_FILE)


def describe_requests(settings: JudgeSettings) -> Iterator[str]:
    """What a dry run tells."""
    styles = Artifact.open(settings.rewrites, kind="rewrites").settings["styles"]
    num_labelled = len(labelled_pairs(settings.language, settings.labelled_file))
    yield (f"requests: at most {settings.sample * len(styles) + num_labelled:,} ({settings.sample:,} of each of "
           f"{len(styles)} styles, {num_labelled:,} labelled pairs), and {settings.num_retries} more for each answer "
           "that cannot be used")


@dataclass(frozen=True)
class _Asker:
    """All that decides what the judge is asked."""

    form: Form
    settings: JudgeSettings
    model_identity: str

    def request(self, pair: Pair, attempt: int) -> Request:
        """See window.Asker."""
        key = hash_json([vars(pair), self.form.identity, self.model_identity, self.settings.sampling.model_dump(),
                         self.settings.seed, attempt])
        return Request(key[:32], self.form.render(pair.source, pair.text), int(key[32:48], 16) >> 1,
                       self.settings.max_new_tokens)

    def place(self, pair: Pair) -> tuple[str | int, ...]:
        """Longest first."""
        return -len(pair.source) - len(pair.text), *pair.place


def _make(settings: JudgeSettings, rewrites: Artifact, labelled: Sequence[Pair], folder: Path) -> dict[str, Any]:
    samples = sample_pairs(settings.rewrites, rewrites.settings["styles"], settings.sample, settings.seed)
    asker = _Asker(load_form(settings.language), settings, model_identity(settings))
    pairs = [*labelled, *(pair for sample in samples.values() for pair in sample.pairs)]
    last = _last_attempts(_ask_all(asker, pairs, folder))
    rows = [_row(last[pair]) for pair in sorted(pairs, key=lambda pair: pair.place)]
    write_parquet(folder / PAIRS_FILE, pa.Table.from_pylist(rows, schema=_SCHEMA))
    summary = summarize(samples, labelled, {pair: attempt.verdict for pair, attempt in last.items()})
    summary["judges_itself"] = asker.model_identity == _rewriter_of(rewrites)
    write_json(folder / SUMMARY_FILE, summary)
    return _totals(summary)


def _ask_all(asker: _Asker, pairs: Sequence[Pair], folder: Path) -> list[JudgeAttempt]:
    """All attempts; those that an earlier run noted are not made again."""
    settings = asker.settings
    journal = Journal(folder / JOURNAL_FILE)
    try:
        work = _Work(asker, pairs, journal)
        if first := work.take():
            batches = [first]
            engine = open_engine(settings.engine, settings.model, settings.sampling, settings.vllm, settings.openai,
                                 settings.chat_template_kwargs,
                                 asker.form.schema if settings.structured_output else None)
            for request, completion in clean_answers(engine, lambda: batches.pop() if batches else work.take()):
                work.window.put(request, completion)
        work.guard.refuse_failures()
        assert work.window.is_finished
        return work.window.attempts
    finally:
        journal.close()


class _Work:
    """What an engine takes its requests from."""

    def __init__(self, asker: _Asker, pairs: Sequence[Pair], journal: Journal) -> None:
        self.guard = FailureGuard(asker.settings, _MEND if asker.settings.structured_output else "")
        self.window: Window[Pair, Judgement] = Window(0, sorted(pairs, key=asker.place), asker, journal)
        self._form = asker.form
        self._progress = Progress("judge", len(pairs), "pairs")

    def take(self) -> list[Request]:
        """Requests that belong together; none: there are none until an answer under way has come."""
        while not (batch := self.window.take()):
            if not (answers := self.window.take_answers()):
                return []
            verdicts = [(read_answer(one.completion, self._form), 0) for one in answers]
            judged, settled = self.window.put_verdicts(answers, verdicts)
            self._progress.advance(len(settled))
            for attempt in judged:
                self.guard.see_answer(attempt.completion)
        return batch


def _last_attempts(attempts: Sequence[JudgeAttempt]) -> dict[Pair, JudgeAttempt]:
    return {one.item: one for one in sorted(attempts, key=lambda one: one.attempt)}


def _row(attempt: JudgeAttempt) -> dict[str, Any]:
    judgement = attempt.verdict
    return {**vars(attempt.item), "is_faithful": judgement.is_faithful,
            **{name: list(judgement.findings.get(name, ())) for name in FINDINGS}, "reasons": list(judgement.reasons),
            "attempt": attempt.attempt, "answer": attempt.completion.text, "problem": attempt.completion.problem}


def _rewriter_of(rewrites: Artifact) -> str | None:
    """The rewriter, as `model_identity` names a judge."""
    request = rewrites.manifest["request"]
    if request["settings"].get("engine") == "openai":
        return f"openai:{request['settings'].get('openai', {}).get('model')}"
    return request["inputs"].get("model", {}).get("content_hash")


def _totals(summary: Mapping[str, Any]) -> dict[str, int]:
    groups = [*summary["styles"], *summary["labelled"].values()]
    return {name: sum(one[name] for one in groups) for name in ("num_asked", "num_judged", "num_unparsable",
                                                                  "num_failed")}
