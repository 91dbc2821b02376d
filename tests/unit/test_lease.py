"""One writer at a time, also where file systems know no locks and processes are killed, stopped or elsewhere."""

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from megatron_ext import lease as leases
from megatron_ext.artifacts import produce
from megatron_ext.errors import UserError
from megatron_ext.lease import lease

fork = multiprocessing.get_context("fork")


@pytest.fixture(autouse=True)
def hasty(monkeypatch):
    monkeypatch.setattr(leases, "RENEWAL_SECONDS", 0.1)
    monkeypatch.setattr(leases, "STALE_SECONDS", 1.0)
    monkeypatch.setattr(leases, "GRACE_SECONDS", 0.3)


def hold(path, seconds, held):
    with lease(path, path.parent):
        held.set()
        time.sleep(seconds)


@pytest.fixture
def start():
    started = []

    def begin(target, *arguments):
        held = fork.Event()
        process = fork.Process(target=target, args=(*arguments, held), daemon=True)
        process.start()
        started.append(process)
        assert held.wait(20)
        return process

    yield begin
    for process in started:
        process.kill()
        process.join()


def elsewhere(path, **changes):
    """A lease that a process on another host holds."""
    with lease(path, path.parent):
        values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, "host": "other-host", "machine": "another kernel", **changes}))


def test_the_second_is_told_who_holds_it(tmp_path, start):
    process = start(hold, tmp_path / "x", 60)
    with pytest.raises(UserError, match=rf"process {process.pid} on .*since 20"), lease(tmp_path / "x", tmp_path):
        pass


def test_the_second_waits_when_it_wants_to(tmp_path, start, capsys):
    start(hold, tmp_path / "x", 1)
    with lease(tmp_path / "x", tmp_path, wait=True):
        assert json.loads((tmp_path / "x").read_text())["pid"] == os.getpid()
    assert capsys.readouterr().out.count("waiting for") == 1
    assert os.listdir(tmp_path) == []


def test_a_lease_is_found_through_links_and_dots(tmp_path, start):
    (tmp_path / "real" / "deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    start(hold, tmp_path / "real" / "x", 60)
    for other in (tmp_path / "link" / "x", tmp_path / "real" / "deep" / ".." / "x"):
        with pytest.raises(UserError, match="another process"), lease(other, other.parent):
            pass


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_that_of_a_killed_process_is_taken_over_at_once_even_before_its_parent_reads_its_end(tmp_path, start, number):
    process = start(hold, tmp_path / "x", 60)
    os.kill(process.pid, number)
    started = time.monotonic()
    with lease(tmp_path / "x", tmp_path, wait=True):
        assert time.monotonic() - started < 5


def test_a_process_id_that_is_used_again_is_another_process(tmp_path):
    with lease(tmp_path / "x", tmp_path):
        values = json.loads((tmp_path / "x").read_text())
    (tmp_path / "x").write_text(json.dumps({**values, "started": "1"}))
    with lease(tmp_path / "x", tmp_path):
        pass


def test_one_held_elsewhere_is_kept_while_it_is_renewed_and_taken_when_it_is_not(tmp_path):
    elsewhere(tmp_path / "x", job="cluster/12")
    renewing = fork.Process(target=_renew_for, args=(tmp_path / "x", 30), daemon=True)
    renewing.start()
    with pytest.raises(UserError, match=r"on other-host, Slurm job 12"), lease(tmp_path / "x", tmp_path):
        pass
    renewing.kill()
    renewing.join()
    started = time.monotonic()
    with lease(tmp_path / "x", tmp_path):
        assert time.monotonic() - started > 0.5


def _renew_for(path, seconds):
    for _ in range(10 * seconds):
        os.utime(path)
        time.sleep(0.1)


def test_a_requeued_job_on_another_host_goes_on_at_once(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    elsewhere(tmp_path / "x")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    monkeypatch.setattr(leases, "STALE_SECONDS", 1000.0)
    with lease(tmp_path / "x", tmp_path):
        pass


@pytest.mark.parametrize("text", ["", "{", "[]", '{"host": 1}'])
def test_a_torn_lease_does_not_lock_for_ever(tmp_path, text):
    (tmp_path / "x").write_text(text)
    with lease(tmp_path / "x", tmp_path):
        pass


def _count(folder, number, held):
    held.set()
    for _ in range(20):
        with lease(folder / "x", folder, wait=True):
            file = folder / "count"
            value = int(file.read_text()) if file.exists() else 0
            time.sleep(0.001)
            file.write_text(str(value + 1))


def test_of_many_one_writes_at_a_time_without_locks_of_the_file_system(tmp_path, start, monkeypatch):
    def no_lock(*arguments):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", no_lock)
    monkeypatch.setattr("fcntl.lockf", no_lock)
    (tmp_path / "x").write_text("torn")  # all begin with taking over
    processes = [start(_count, tmp_path, number) for number in range(4)]
    for process in processes:
        process.join(60)
    assert (tmp_path / "count").read_text() == "80"
    assert sorted(os.listdir(tmp_path)) == ["count"]


def _fork_and_die(path, held):
    child = os.fork()
    if child == 0:
        time.sleep(60)
        os._exit(0)
    (path.parent / "child").write_text(str(child))
    with lease(path, path.parent):
        if os.fork() == 0:
            time.sleep(60)
            os._exit(0)
        held.set()
        time.sleep(60)


def test_a_forked_writer_that_outlives_the_holder_keeps_nothing(tmp_path, start):
    process = start(_fork_and_die, tmp_path / "x")
    process.kill()
    with lease(tmp_path / "x", tmp_path):
        pass
    os.kill(int((tmp_path / "child").read_text()), signal.SIGKILL)


def _hold_until_lost(path, held):
    leases.RENEWAL_SECONDS = 0.1
    with lease(path, path.parent):
        held.set()
        time.sleep(60)


def test_a_holder_that_was_taken_for_dead_ends_before_it_writes_on(tmp_path, start):
    process = start(_hold_until_lost, tmp_path / "x")
    (tmp_path / "x").write_text("another's")
    process.join(10)
    assert process.exitcode == 2
    assert (tmp_path / "x").read_text() == "another's"


def _produce(output, held):
    def make(folder):
        held.set()
        with open(output.parent / "made", "a") as file:
            file.write("once\n")
        time.sleep(1)
        (folder / "data").write_text("x")
        return {}

    produce(output, kind="thing", settings={}, inputs={}, make=make)


def test_an_artifact_whose_folder_is_a_link_is_made_by_one(tmp_path, start):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "a").symlink_to(tmp_path / "elsewhere")
    start(_produce, Path(tmp_path / "a"))
    with pytest.raises(UserError, match="another process"):
        _produce(tmp_path / "elsewhere", fork.Event())
    assert (tmp_path / "made").read_text() == "once\n"
