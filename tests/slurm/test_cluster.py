"""The cluster of these tests: nothing of it outlives the process that started it, and it is not started in vain."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.slurm.cluster import ROOT, install_packages, why_not

START = """
import sys, time
from pathlib import Path
from tests.slurm.cluster import Cluster
cluster = Cluster(Path(sys.argv[1]), num_nodes=1)
cluster.submit("--wrap=sleep 600")
while "RUNNING" not in cluster.run("squeue", "--format=%T").stdout:
    time.sleep(0.05)
print("running", flush=True)
time.sleep(600)
"""


def processes_of(folder):
    """Command lines that name the folder, of all processes of the machine."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if str(folder).encode() in path.read_bytes() + path.with_name("cmdline").read_bytes():
                found.append(path.parent.name)
        except OSError:  # it has just ended
            continue
    return found


def test_nothing_is_left_after_an_aborted_test(cluster, tmp_path):
    """Beside a running cluster, as two sessions on one machine would be."""
    hosts = Path("/etc/hosts").read_text()
    process = subprocess.Popen([sys.executable, "-c", START, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE,
                               text=True)
    assert process.stdout.readline() == "running\n"
    assert len(processes_of(tmp_path)) > 4
    process.send_signal(signal.SIGKILL)
    process.communicate()
    deadline = time.monotonic() + 10
    while processes_of(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert processes_of(tmp_path) == []
    assert not {"cluster", "node1"} & set(os.listdir("/sys/class/net"))
    assert Path("/etc/hosts").read_text() == hosts


def test_without_root_there_is_a_reason_to_skip(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert why_not() == "a Slurm cluster needs Linux and root"


def test_what_is_there_is_not_installed_again(cluster, monkeypatch):
    def run(*arguments, **options):
        raise AssertionError(f"{arguments} was run")

    monkeypatch.setattr(subprocess, "run", run)
    install_packages()
