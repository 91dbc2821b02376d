"""Stage 2: rewrite the documents of a selection in several styles."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatron_ext.artifacts import Artifact, write_json
from megatron_ext.data.rewriting import outputs
from megatron_ext.data.rewriting.engines.cleaning import clean_answers
from megatron_ext.data.rewriting.engines.open import open_engine
from megatron_ext.data.rewriting.guard import Guard, check_summary
from megatron_ext.data.rewriting.helpers import Helpers
from megatron_ext.data.rewriting.items import Asker
from megatron_ext.data.rewriting.plan import Plan, make_plan
from megatron_ext.data.rewriting.prompts import load_prompts
from megatron_ext.data.rewriting.report import write_report
from megatron_ext.data.rewriting.request import model_identity, what_files_hold, with_served_model
from megatron_ext.data.rewriting.settings import RewriteSettings
from megatron_ext.data.rewriting.summary import SUMMARY_FILE, summarize
from megatron_ext.data.rewriting.work import JOURNALS_FOLDER, Work
from megatron_ext.parts import PART, Merge, Part, check_parts
from megatron_ext.progress import Progress, format_seconds
from megatron_ext.stage import make_artifact, request_settings


def rewrite_corpus(settings: RewriteSettings, output: Path, share: Part | Merge | None = None) -> Artifact:
    """Make the artifact `output` (kind "rewrites"); it goes on after an interruption.

    It holds documents/ (see megatron_ext.data.documents), chunks/ (every attempt, with the reasons against it),
    summary.json (by style) and report.html (the same to look at, with pairs of texts). A Part makes its share of the
    windows in `output.parts`; a Merge joins the shares.

    Raises UserError for a missing input, an unknown style, a model without chat template, a selection without a
    document that may be rewritten, parts that are missing or answer another request, and when too many requests fail or
    too few rewrites survive (see RewriteSettings).
    """
    settings = with_served_model(settings, _place_of_name(output, share))
    more = what_files_hold(settings)
    request = request_settings(settings, more)
    inputs = {name: path for name in ("documents", "model", "tokenizer")
              if (path := getattr(settings, name)) is not None}
    if isinstance(share, Part):
        return make_artifact(share.folder(output), kind="rewrites", inputs=inputs, settings=settings,
                             more=more | {PART: [share.index, share.count]},
                             make=lambda folder: _make(settings, folder, share))
    if isinstance(share, Merge):
        return make_artifact(output, kind="rewrites", settings=settings, more=more, inputs=inputs,
                             make=lambda folder: _merge(settings, share.folders(output), request, inputs, folder))
    return make_artifact(output, kind="rewrites", settings=settings, more=more, inputs=inputs,
                         make=lambda folder: _make(settings, folder, Part(0, 1)))


def _place_of_name(output: Path, share: Part | Merge | None) -> Path:
    """The artifact that may know the served model's name: a merge takes that of its first part."""
    if isinstance(share, Merge):
        return share.folders(output)[0]
    return share.folder(output) if share else output


def _make(settings: RewriteSettings, folder: Path, part: Part) -> dict[str, Any]:
    plan = make_plan(settings)
    finished = outputs.finished_windows(folder)
    mine = [window for window in plan.windows if part.takes(window.index)]
    num_styles = len(settings.styles)
    progress = Progress("rewrite", sum(window.num_tokens for window in mine) * num_styles, "source tokens",
                        rate_unit="output tokens", already_done=num_styles * sum(
                            window.num_tokens for window in mine if window.index in finished))
    with Helpers(settings) as helpers:
        prompts = load_prompts(settings.styles, settings.prompts_folder, settings.language)
        asker = Asker({prompt.style: prompt for prompt in prompts}, settings, model_identity(settings))
        work = Work(plan, [window for window in mine if window.index not in finished], asker, helpers, folder, progress,
                    Guard(settings))
        _answer_all(settings, work)
    return _finish(settings, plan, [window.index for window in mine], folder)


def _answer_all(settings: RewriteSettings, work: Work) -> None:
    first = [work.take()]
    if first[0]:
        engine = open_engine(settings.engine, settings.model, settings.sampling, settings.vllm, settings.openai,
                             settings.chat_template_kwargs)
        started, num_tokens = time.monotonic(), 0
        for request, completion in clean_answers(engine, lambda: first.pop() if first else work.take()):
            work.put(request, completion)
            num_tokens += completion.num_tokens or 0
        seconds = time.monotonic() - started
        print(f"wrote {num_tokens:,} tokens in {format_seconds(seconds)}: {num_tokens / seconds:,.1f} a second, "
              f"{seconds * settings.num_devices / 3600:,.2f} hours of a device (GPU)", flush=True)
    work.finish()


def _merge(settings: RewriteSettings, parts: Sequence[Path], request: dict[str, Any], inputs: dict[str, Path],
           folder: Path) -> dict[str, Any]:
    check_parts(parts, request, inputs)
    plan = make_plan(settings)
    outputs.link_parts(parts, folder)
    return _finish(settings, plan, [window.index for window in plan.windows], folder)


def _finish(settings: RewriteSettings, plan: Plan, windows: Sequence[int], folder: Path) -> dict[str, Any]:
    """Summary and report of the windows in the folder; returns the counts."""
    assert outputs.finished_windows(folder) == set(windows)
    summary, samples = summarize(folder, settings, plan)
    check_summary(settings, summary)
    write_report(folder, settings, summary, samples)
    write_json(folder / SUMMARY_FILE, summary)
    shutil.rmtree(folder / JOURNALS_FOLDER, ignore_errors=True)
    rewrites = summary["rewrites"]
    return {
        "documents": rewrites["complete"] + rewrites["partial"],
        "tokens": rewrites["tokens"],
        "chunks": {style: {key: values[key] for key in ("num_chunks", "num_survived", "reasons")}
                   for style, values in summary["styles"].items()},
    }
