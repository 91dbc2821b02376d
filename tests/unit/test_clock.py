"""The clock of an iteration, on the host and on a device that is behind."""

import time

import pytest

from megatron_ext.training import clock as module
from megatron_ext.training.clock import Clock


def test_a_part_inside_another_counts_for_itself():
    clock = Clock()
    with clock.measure("outer"):
        time.sleep(0.02)
        with clock.measure("inner", on_host=True):
            time.sleep(0.04)
    seconds = clock.read()
    assert 0.02 <= seconds["outer"] < 0.04 <= seconds["inner"]
    assert clock.read() == {}


def test_nobody_waits_for_a_device(monkeypatch):
    """Its marks come later: a part is told at the first reading after its end; the host's are not taken from it."""
    now = 0

    class Mark:
        def __init__(self):
            self.at = len(marks)
            marks.append(self)

        def query(self):
            return self.at < now

        def elapsed_time(self, end):
            assert self.query()
            assert end.query()
            return 1000.0 * (end.at - self.at)

    marks = []
    monkeypatch.setattr(module, "_mark", Mark)
    clock = Clock()
    with clock.measure("forward"):
        with clock.measure("data", on_host=True):
            pass
        with clock.measure("communication"):
            pass
    with clock.measure("optimizer"):
        pass
    now = 5
    told = clock.read()
    assert told.pop("data") == pytest.approx(0, abs=0.1)
    assert told == {"forward": 2.0, "communication": 1.0}
    now = 6
    assert clock.read() == {"optimizer": 1.0}
