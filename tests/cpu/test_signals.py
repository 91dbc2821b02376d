"""Signals, Ctrl-C, second trainers and errors of one node: nothing is lost, and the console says what happened."""

import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from megatron_ext.artifacts import Artifact
from tests.cpu.test_interruptions import InterruptedLab
from tests.unit.test_custody import change_in_place

pytestmark = pytest.mark.slow
SAVED = "asked to stop; saved after iteration"
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    return InterruptedLab(tmp_path_factory.mktemp("signals"))


def begun(lab, name, num_processes):
    """A run that has begun and saves only when it is told to."""
    settings = lab.settings(name, checkpoint={"interval_tokens": None}, train={"budget_tokens": 20_000 * 8 * 32})
    settings["parallel"] = {"pipeline_model_parallel_size": num_processes}
    for source in settings["data"]["sources"].values():
        source["max_epochs"] = 1e6
    process = lab.start(settings, num_processes)
    lab.wait_for(name, f"hang-rank{num_processes - 1}.txt", process)  # the loop begins
    return settings, process


def saved(lab, name, output):
    assert output.count(SAVED) == 1, output
    [checkpoint] = (lab.folder / name / "checkpoints").glob("iter_*")
    assert Artifact.open(checkpoint, kind="checkpoint").verify() == []
    assert not (lab.folder / name / ".lease").exists()


def test_sigusr1_that_kills_torchrun_lets_the_trainers_save(lab):
    _, process = begun(lab, "usr1", 2)
    process.send_signal(signal.SIGUSR1)
    output, _ = process.communicate(timeout=120)
    saved(lab, "usr1", output)
    assert process.returncode == -signal.SIGUSR1


@pytest.mark.parametrize(("name", "number"), [("ctrl-c", signal.SIGINT), ("usr1-alone", signal.SIGUSR1),
                                              ("term-alone", signal.SIGTERM)])
def test_a_signal_to_a_trainer_without_launcher_saves_and_exits_0(lab, name, number):
    _, process = begun(lab, name, 1)
    process.send_signal(number)
    output, _ = process.communicate(timeout=120)
    saved(lab, name, output)
    assert process.returncode == 0
    assert "Traceback" not in output


def test_ctrl_c_under_torchrun_saves(lab):
    _, process = begun(lab, "ctrl-c-2", 2)
    parents = subprocess.run(["ps", "--ppid", str(process.pid), "-o", "pid="], capture_output=True, text=True).stdout
    for pid in [process.pid, *map(int, parents.split())]:  # a terminal sends it to all
        os.kill(pid, signal.SIGINT)
    output, _ = process.communicate(timeout=120)
    saved(lab, "ctrl-c-2", output)


def test_a_second_trainer_is_told_who_trains_and_the_first_goes_on(lab):
    settings, process = begun(lab, "two", 1)
    (lab.folder / "link").symlink_to(lab.folder)
    settings["output"] = str(lab.folder / "link" / ".." / lab.folder.name / "two")
    before = (lab.folder / "two" / "config.yaml").stat().st_mtime_ns
    second = lab.start(settings, 1)
    output, _ = second.communicate(timeout=120)
    assert second.returncode == 2
    assert f"made by another process (process {process.pid} on" in output
    assert (lab.folder / "two" / "config.yaml").stat().st_mtime_ns == before
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    saved(lab, "two", output)


def test_changed_training_data_are_refused_by_name(lab):
    settings = lab.settings("changed")
    [path] = [file for file in lab.sources["a"].rglob("*") if file.name.endswith("train.bin")]
    kept = path.with_name("kept")
    shutil.copy2(path, kept)
    change_in_place(path)
    try:
        process = lab.start(settings, 1)
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 2
        assert f"{path} has other bytes" in output
    finally:
        os.replace(kept, path)


def test_an_error_on_one_node_reaches_that_nodes_log_once(lab):
    """Two launchers stand for two nodes; the second starts in a folder where the model is not."""
    settings = lab.settings("nodes")
    settings["model"]["hf_folder"] = "model"
    (lab.folder / "nodes.yaml").write_text(yaml.safe_dump(settings))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    logs = []
    launchers = []
    for number, folder in enumerate((lab.folder, lab.folder / "elsewhere")):
        folder.mkdir(exist_ok=True)
        command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "2",
                   "--rdzv-backend", "c10d", "--rdzv-id", "nodes", "--rdzv-endpoint", f"127.0.0.1:{port}",
                   "--local-addr", "127.0.0.1", "-m", "megatron_ext.train", "--config", str(lab.folder / "nodes.yaml")]
        logs.append(lab.folder / f"node{number}.log")
        with open(logs[-1], "w") as log:
            launchers.append(subprocess.Popen(command, cwd=folder, stdout=log, stderr=subprocess.STDOUT, env={
                **os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}))
    launchers[1].wait(120)
    launchers[0].kill()  # Slurm's --kill-on-bad-exit
    launchers[0].wait(60)
    text = logs[1].read_text()
    assert text.count("error: ") == 1, text
    assert "model.hf_folder" in text
    assert f"on {socket.gethostname()}]" in text
