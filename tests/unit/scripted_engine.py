"""An engine that answers by a function: the scenarios that no real model gives on demand."""

import pytest

from megatron_ext.data.rewriting.engines.interface import Completion


class ScriptedEngine:
    """Answers by a function of the request."""

    def __init__(self, script):
        self.script, self.requests = script, []

    def answer(self, take):
        while batch := take():
            self.requests += batch
            for request in batch:
                yield request, Completion(self.script(request), 10, 5, "stop")


def scripts_the_engine_of(module):
    """A fixture: scripted(answer) -> the engine that a module opens in place of a real one."""
    @pytest.fixture
    def scripted(monkeypatch):
        def install(answer):
            engine = ScriptedEngine(answer)
            monkeypatch.setattr(module, "open_engine", lambda *arguments: engine)
            return engine
        return install

    return scripted
