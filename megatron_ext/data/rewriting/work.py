"""The work of a run: windows are opened, asked for, checked and written while the engine is kept busy.

Nothing waits for a window's last answers: its failed items are asked for again, and the next window begins, while the
others are still under way. At most four windows are in memory, and the items of a fifth.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from pathlib import Path

from megatron_ext.data.rewriting import outputs
from megatron_ext.data.rewriting.engines.interface import Completion, Request
from megatron_ext.data.rewriting.guard import Guard
from megatron_ext.data.rewriting.helpers import Helpers, judge, load_items
from megatron_ext.data.rewriting.items import Asker, Item
from megatron_ext.data.rewriting.plan import Plan, WindowPlan
from megatron_ext.data.rewriting.window import Answered, Journal, Window
from megatron_ext.progress import Progress

JOURNALS_FOLDER = "journals"
_MAX_WINDOWS = 4
_ANSWERS_A_TASK = 32


class Work:
    """What an engine takes its requests from and gives its answers to."""

    def __init__(self, plan: Plan, windows: Sequence[WindowPlan], asker: Asker, helpers: Helpers, folder: Path,
                 progress: Progress, guard: Guard) -> None:
        self._plan, self._asker, self._helpers, self._folder, self._progress = plan, asker, helpers, folder, progress
        self._guard = guard
        self._waiting = deque(windows)
        self._loading: deque[tuple[WindowPlan, Future[list[Item]]]] = deque()
        self._open: list[Window] = []
        self._asked: dict[str, Window] = {}
        self._judging: dict[Future, tuple[Window, list[Answered]]] = {}
        self._writing: dict[Future, Window] = {}

    def take(self) -> list[Request]:
        """Requests that belong together; none: there are none until an answer under way has come."""
        while True:
            self._collect()
            for window in self._open:
                if batch := window.take():
                    self._asked |= dict.fromkeys((request.key for request in batch), window)
                    return batch
            if self._open_next():
                continue
            if self._asked or not self._wait_for_helpers():
                return []

    def put(self, request: Request, completion: Completion) -> None:
        """Note an answer."""
        window = self._asked.pop(request.key)
        is_new = request.key not in window.journal.known
        window.put(request, completion)
        self._progress.advance(0, (completion.num_tokens or 0) if is_new else 0)

    def finish(self) -> None:
        """Wait until the last windows are written."""
        while self._judging or self._writing:
            self._wait_for_helpers()
            self._collect()
        assert not (self._open or self._waiting or self._loading or self._asked)

    def _open_next(self) -> bool:
        """Open a window, if there is one and its items are at hand (or nothing else is to be done meanwhile)."""
        num_ahead = 1 if self._helpers.num_processes else 0
        if len(self._open) + len(self._writing) >= _MAX_WINDOWS:
            return False
        while self._waiting and len(self._loading) <= num_ahead:
            window = self._waiting.popleft()
            self._loading.append((window, self._helpers.submit(load_items, self._plan, window)))
        if not self._loading or (self._asked and not self._loading[0][1].done()):
            return False
        plan, loaded = self._loading.popleft()
        items = loaded.result()
        num_styles = len(self._asker.settings.styles)
        self._progress.total += sum(item.num_source_tokens for item in items) - plan.num_tokens * num_styles
        journal = Journal(self._folder / JOURNALS_FOLDER / f"{plan.index:05d}.jsonl")
        window = Window(plan.index, items, self._asker, journal)
        self._open.append(window)
        self._write_if_finished(window)
        return True

    def _collect(self) -> None:
        """Take what the helpers have done, and give them what there is to check."""
        for future in [future for future in self._judging if future.done()]:
            window, answers = self._judging.pop(future)
            judged, settled = window.put_verdicts(answers, future.result())
            self._guard.see(judged)
            self._progress.advance(sum(attempt.item.num_source_tokens for attempt in settled), 0)
            self._write_if_finished(window)
        for future in [future for future in self._writing if future.done()]:
            future.result()
            self._writing.pop(future).journal.delete()
        for window in self._open:
            self._have_judged(window)
        if not self._helpers.num_processes and self._judging:
            self._collect()

    def _have_judged(self, window: Window) -> None:
        if window.num_unjudged < _ANSWERS_A_TASK and self._judging:
            return  # the helpers are busy: more will have come when they are not
        answers = window.take_answers()
        for start in range(0, len(answers), _ANSWERS_A_TASK):
            task = answers[start:start + _ANSWERS_A_TASK]
            future = self._helpers.submit(judge, [(one.item, one.completion) for one in task])
            self._judging[future] = (window, task)

    def _write_if_finished(self, window: Window) -> None:
        if window.is_finished:
            self._open.remove(window)
            if not (self._open or self._loading or self._waiting):
                self._guard.refuse_failures()
            future = self._helpers.submit(outputs.write_window, self._folder, window.index, window.attempts)
            self._writing[future] = window

    def _wait_for_helpers(self) -> bool:
        """Wait for any task of theirs; False: they have none."""
        tasks = [*self._judging, *self._writing, *(loaded for _, loaded in self._loading)]
        wait(tasks, return_when=FIRST_COMPLETED)
        return bool(tasks)
