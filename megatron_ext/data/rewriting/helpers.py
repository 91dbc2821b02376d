"""Work beside the engine, in processes of its own: splitting documents, checking answers, writing finished windows."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from megatron_ext.data.rewriting.checking.checks import NO_ANSWER, Thresholds, Verdict, check, load_thresholds
from megatron_ext.data.rewriting.checking.lexicon import Lexicon, load_lexicon
from megatron_ext.data.rewriting.checking.wrapping import strip_wrapping
from megatron_ext.data.rewriting.chunking import CountTokens
from megatron_ext.data.rewriting.engines.interface import Completion
from megatron_ext.data.rewriting.fitting import fits_model
from megatron_ext.data.rewriting.items import FitsModel, Item, document_items
from megatron_ext.data.rewriting.plan import Plan, WindowPlan, read_window
from megatron_ext.data.rewriting.prompts import Prompt, load_prompts
from megatron_ext.data.rewriting.settings import RewriteSettings
from megatron_ext.data.workers import end_with_parent
from megatron_ext.errors import UserError

Result = TypeVar("Result")


@dataclass(frozen=True)
class Tools:
    """What a helper keeps at hand."""

    settings: RewriteSettings
    prompts: dict[str, Prompt]
    thresholds: dict[str, Thresholds]
    lexicon: Lexicon
    count_tokens: CountTokens
    fits_model: FitsModel


def open_tools(settings: RewriteSettings) -> Tools:
    """Load prompts, thresholds, the language and the training tokenizer."""
    prompts = load_prompts(settings.styles, settings.prompts_folder, settings.language)
    return Tools(settings, {prompt.style: prompt for prompt in prompts},
                 load_thresholds(settings.styles, settings.thresholds_file, settings.language),
                 load_lexicon(settings.language), token_counter(settings.tokenizer), fits_model(settings, prompts))


def token_counter(tokenizer: Path) -> CountTokens:
    """A function that counts the tokens of texts by the tokenizer of a folder, without special tokens around them."""
    import pyarrow as pa

    from megatron_ext.data.tokenizers import load_tokenizer

    encoder = load_tokenizer(tokenizer).encoder
    return lambda texts: encoder.encode(pa.array(texts, pa.string())).lengths.tolist()


def load_items(tools: Tools, plan: Plan, window: WindowPlan) -> list[Item]:
    """The items of a window in the order in which they are asked for."""
    items = [item for document in read_window(tools.settings.documents, window)
             if plan.takes(document.id, document.num_tokens, tools.settings)
             for item in document_items(document.id, document.text, tools.settings, tools.count_tokens,
                                        tools.fits_model, tuple(sorted(document.scores.items())))]
    return sorted(items, key=lambda item: item.place(tools.settings.order))


def judge(tools: Tools, answers: Sequence[tuple[Item, Completion]]) -> list[tuple[Verdict, int]]:
    """The verdict on each answer, and the tokens of its text by the training tokenizer."""
    sizes = tools.count_tokens([strip_wrapping(completion.text, item.source, tools.lexicon)
                                for item, completion in answers])
    return [(NO_ANSWER if completion.failed else
             check(item.source, completion.text, finish_reason=completion.finish_reason,
                   length_ratio=int(size) / item.num_source_tokens, thresholds=tools.thresholds[item.style],
                   lexicon=tools.lexicon), int(size))
            for (item, completion), size in zip(answers, sizes, strict=True)]


_tools: Tools | None = None


class Helpers:
    """Processes that run functions of (tools, …); with none of them, this process runs a function at once."""

    def __init__(self, settings: RewriteSettings) -> None:
        self.num_processes = settings.num_helpers
        self._pool: ProcessPoolExecutor | None = None
        if self.num_processes:
            context = multiprocessing.get_context("spawn")  # a fork would copy the engine's threads and memory
            self._pool = ProcessPoolExecutor(self.num_processes, mp_context=context, initializer=_initialize,
                                             initargs=(settings,))
            self._tools = None
        else:
            self._tools = open_tools(settings)

    def submit(self, function: Callable[..., Result], *arguments: Any) -> Future[Result]:
        """Have `function(tools, *arguments)` run. The function must be importable."""
        if self._pool is None:
            future: Future[Result] = Future()
            future.set_result(function(self._tools, *arguments))
            return future
        return self._pool.submit(_run, function, *arguments)

    def __enter__(self) -> Helpers:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=kind is None, cancel_futures=True)
        if isinstance(error, BrokenProcessPool):
            raise UserError("a process that checks answers was killed, perhaps for want of memory; run the same "
                            "command again: it goes on where it stopped. Smaller window_tokens need less memory"
                            ) from None


def _initialize(settings: RewriteSettings) -> None:
    global _tools
    end_with_parent()
    _tools = open_tools(settings)


def _run(function: Callable[..., Result], *arguments: Any) -> Result:
    return function(_tools, *arguments)
