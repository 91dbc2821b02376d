"""tools.study_status: what it tells of studies on this machine and under Slurm, and how it behaves in a terminal."""

import io
import json
import math
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from megatron_ext.artifacts import produce, publish_in_place
from megatron_ext.lease import lease
from megatron_ext.progress import PROGRESS_LINE, Progress
from megatron_ext.study import live
from megatron_ext.study.arms import narrowed
from megatron_ext.study.live import load_kept, look
from megatron_ext.study.live_view import screen, sparkline
from megatron_ext.study.reporting import keep_study
from megatron_ext.study.status import comment, read_ledger
from tests.unit.small_study import ITERATION, by_name, study_loader
from tests.unit.test_submit_study import setting, values  # noqa: F401
from tools import study_status

ROOT = Path(__file__).parents[2]


class Folder:
    """A work folder of the small study, with stages as a runner on this machine leaves them."""

    def __init__(self, place):
        study = study_loader(place)()
        self.work, self.nodes = place / "work", by_name(study)
        keep_study(study, list(self.nodes.values()), self.work)
        (self.work / "leases").mkdir()
        (self.work / "logs").mkdir()

    def finish(self, *names):
        for name in names:
            node = self.nodes[name]
            if node.kind == "run":
                publish_in_place(node.output(self.work), kind="run", settings={}, inputs={}, counts={})
            else:
                produce(node.output(self.work), kind=node.kind, settings={}, inputs={},
                        make=lambda folder: {"tokens": 10_000})

    def log(self, name, text):
        (self.work / "logs" / f"{self.nodes[name].label}.log").write_text(text)

    def lease(self, name):
        return lease(self.work / "leases" / self.nodes[name].label, self.work)

    def train(self, name, iterations, seconds=0.5):
        folder = self.nodes[name].output(self.work)
        folder.mkdir(parents=True, exist_ok=True)
        rows = [{"event": "train", "iteration": one, "loss": 5 - one / 10, "tokens": one * ITERATION,
                 "tokens_per_second": ITERATION / seconds} for one in range(1, iterations + 1)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"event": "tra')

    def look(self):
        return {one.name: one for one in look(load_kept(self.work), self.work)}

    def screen(self, width=100):
        console = Console(width=width, record=True, file=io.StringIO())
        console.print(screen(list(self.look().values()), "12:00:00"))
        return console.export_text()


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path)


def test_a_run_that_goes_on_tells_iterations_time_to_the_end_losses_and_gpu_hours(folder):
    folder.finish("select/low", "tokenize/low")
    folder.train("run/low/seed0", 15, seconds=720.0)
    with folder.lease("run/low/seed0"):
        found = folder.look()
        told = folder.screen()
    run, other = found["run/low/seed0"], found["run/high/seed0"]
    assert (run.state, run.done, run.total, run.eta) == ("running", 15, 20, "1 h 00 min")
    assert run.spent_hours == pytest.approx(15 * 0.2)
    assert run.left_hours == pytest.approx(5 * 0.2)
    assert (other.state, other.left_hours) == ("not started", pytest.approx(20 * 0.2))
    assert found["select/low"].state == "done"
    assert re.search(r"run/low/seed0 +running +█{9}░{3} +15/20 +1 h 00 min", told)
    assert re.search(r"run/low/seed0 +█\S{13}▁ +3\.500 +15/20", told)
    assert re.search(r"select +█{6}░{6} +1/2 +1 not started", told)
    assert re.search(r"run +░{12} +0/2 .* 3\.00 +5\.00$", told, re.MULTILINE)
    evaluations = 3 * found["evaluate/base"].left_hours
    assert evaluations == pytest.approx(66.67, abs=0.01)  # the forecast
    assert "3.00 GPU-hours spent, about 71.67 left" in told


def test_a_stage_tells_what_its_last_line_of_progress_says(folder, capsys):
    progress = Progress("documents", 2_000, "documents", interval_seconds=0.0)
    progress.advance(1_500)
    folder.log("tokenize/low", f"{capsys.readouterr().out}something else\n")
    with folder.lease("tokenize/low"):
        found = folder.look()["tokenize/low"]
    assert (found.state, found.done, found.total, found.eta) == ("running", 1_500, 2_000, "0 s")


def test_every_line_of_progress_can_be_read(capsys):
    progress = Progress("rewriting: easy 1/2", 12_000, "chunks", rate_unit="tokens", interval_seconds=0.0)
    progress.advance(3, amount=450)
    found = PROGRESS_LINE.search(capsys.readouterr().out.strip())
    assert (found["done"], found["total"]) == ("3", "12,000")


def test_a_failure_tells_its_error_and_the_end_of_its_log(folder):
    folder.log("select/low", "reading\nthe disk is odd\nerror: corpus.path x holds no text\nleaving\n")
    found = folder.look()["select/low"]
    assert found.state == "failed"
    assert "error: corpus.path x holds no text" in found.detail
    told = folder.screen()
    assert "select/low failed: error: corpus.path x holds no text" in told
    assert "    the disk is odd" in told
    assert study_status.main([str(folder.work)]) == 1


def test_a_damaged_artifact_is_told_and_the_others_too(folder):
    folder.finish("select/low")
    parity = folder.nodes["import/parity"].output(folder.work)
    produce(parity, kind="parity", settings={}, inputs={},
            make=lambda place: {"bytes": (place / "parity.json").write_text("{}")})
    (parity / "parity.json").write_text("[1, 2]")
    found = folder.look()
    assert found["import/parity"].state == "failed"
    assert "was damaged after it was made" in found["import/parity"].detail
    assert found["select/low"].state == "done"


def test_what_was_stopped_has_not_failed(folder):
    folder.log("select/low", "reading\n")
    assert folder.look()["select/low"].state == "stopped"
    assert study_status.main([str(folder.work)]) == 0


def test_what_needs_a_refused_run_is_left_out_and_nothing_is_left_to_do(folder, monkeypatch):
    def refuse(node, nodes, work):
        if node.name == "run/high/seed0":
            raise live.RefusedArm("it would see nothing of high")

    monkeypatch.setattr(live, "refuse_pointless", refuse)
    folder.train("run/low/seed0", 20)
    folder.finish(*(name for name in folder.nodes if "high" not in name or name.startswith(("select", "tokenize"))))
    folder.log("run/high/seed0", "error: it would see nothing of high\n")
    found = folder.look()
    assert found["run/high/seed0"].state == "refused"
    assert found["export/high/seed0"].state == found["evaluate/high/seed0"].state == "left out"
    told = folder.screen()
    assert "run/high/seed0 refused: it would see nothing of high" in told
    assert "nothing left to do" not in told  # the model before training can still be compared with the other run
    compared = [name for name, node in folder.nodes.items() if node.stage == "compare"]
    folder.nodes |= {name: narrowed(folder.nodes[name], folder.work) for name in compared}
    folder.finish(*compared)
    assert "nothing left to do" in folder.screen()


def test_studies_that_were_submitted_are_told_by_the_queue(setting, monkeypatch):  # noqa: F811
    monkeypatch.setenv("SITE", str(setting.folder / "site.env"))
    setting.submit()
    rewriting, run = setting.node("rewrite/high"), setting.node("run/low/seed0")
    setting.finish_part("rewrite/high parts", 0)
    setting.slurm.set_queue(
        *((f"77_{number}", "RUNNING", "None", comment(setting.work, f"{rewriting.identity}.parts"))
          for number in range(1, 8)),
        ("78", "PENDING", "Dependency", comment(setting.work, run.identity)))
    failed = setting.node("select/low")
    Path(read_ledger(setting.work)[failed.identity]["log"]).write_text("srun: error: n1\nerror: no space\nleaving\n")
    found = {one.name: one for one in look(load_kept(setting.work), setting.work)}
    assert (found["rewrite/high"].state, found["rewrite/high"].done, found["rewrite/high"].total) == ("running", 1, 8)
    assert (found["run/low/seed0"].state, found["run/low/seed0"].detail) == ("pending", "job 78, Dependency")
    assert found["select/low"].state == "failed"
    assert "error: no space" in found["select/low"].detail
    assert found["select/low"].last_lines == ("srun: error: n1", "error: no space", "leaving")
    assert found["run/high/seed0"].left_hours > 0


@pytest.mark.parametrize("values_, width, told", [
    ([], 8, ""), ([3.0], 8, "▁"), ([2.0, 2.0], 8, "▁▁"), ([0.0, 7.0], 8, "▁█"), (list(range(8)), 8, "▁▂▃▄▅▆▇█"),
    ([1.0] * 50 + [0.0] * 50, 2, "█▁"), ([1.0, math.nan, 0.0], 3, "█×▁"), ([math.inf] * 2, 2, "××"),
])
def test_a_sparkline_is_the_shape_of_its_values(values_, width, told):
    assert sparkline(values_, width) == told


def test_it_fits_a_narrow_terminal(folder):
    folder.train("run/low/seed0", 15)
    with folder.lease("run/low/seed0"):
        assert max(map(len, folder.screen(width=60).splitlines())) <= 60


def test_where_there_is_no_terminal_it_is_shown_once(folder, capsys):
    assert study_status.main([str(folder.work), "--watch"]) == 0
    told = capsys.readouterr().out
    assert told.count("GPU-hours spent") == 1
    assert "\x1b" not in told


def test_in_a_terminal_it_is_shown_anew_and_ends_with_ctrl_c(folder):
    mine, its = pty.openpty()
    process = subprocess.Popen([sys.executable, "-m", "tools.study_status", str(folder.work), "--watch", "--interval",
                                "0.1"], cwd=ROOT, stdin=its, stdout=its, stderr=subprocess.PIPE, start_new_session=True,
                               env={**os.environ, "TERM": "xterm", "COLUMNS": "90", "LINES": "40"})
    os.close(its)
    try:
        assert "0/2" in until(mine, r"select.*2 not started.*GPU-hours spent")
        folder.finish("select/low")
        until(mine, r"select.*1/2.*1 not started")
        process.send_signal(signal.SIGINT)
        until(mine, re.escape("\x1b[?25h"))  # the cursor is there again; unread, a full terminal would hold the process
        code, errors = process.wait(timeout=30), process.stderr.read().decode()
        assert (code, errors) == (130, "error: interrupted: what is finished stays, and the same command goes on\n")
    finally:
        process.kill()
        process.wait()
        process.stderr.close()
        os.close(mine)


def until(terminal, pattern, seconds=60):
    """What comes from a terminal until a pattern is in it."""
    told, end = "", time.monotonic() + seconds
    while time.monotonic() < end and not re.search(pattern, told, re.DOTALL):
        if select.select([terminal], [], [], 1)[0]:
            told += os.read(terminal, 65_536).decode(errors="replace")
    assert re.search(pattern, told, re.DOTALL), told
    return told
