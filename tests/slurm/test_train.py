"""slurm/train.sbatch on a real cluster, two nodes and pipeline parallelism across them.

Whatever happens to a job, its run ends with the losses of an undisturbed one, bit for bit.
"""

import re
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.slurm.tiny_run import ITERATIONS, TrainingJob

pytestmark = pytest.mark.slow


def nothing(cluster, job):
    pass


def time_limit(cluster, job):
    """Slurm's own signal, some minutes before the limit (it looks at the clock twice a minute)."""
    job.wait_for_progress()
    with job.frozen_workers():
        cluster.run("scontrol", "update", f"JobId={job.id}", "TimeLimit=4")
        job.wait_for_log("time limit or preemption")
        cluster.run("scontrol", "update", f"JobId={job.id}", "TimeLimit=60")


def time_limit_at_start(cluster, job):
    """The same signal, before the trainer listens."""
    job.wait_for_log("checkpoint: none")
    cluster.run("scancel", "--batch", "--signal=USR1", job.id)


def save_beyond_time_limit(cluster, job):
    """The trainer does not answer until its time is over."""
    job.wait_for_progress()
    with job.frozen_workers():
        cluster.run("scontrol", "update", f"JobId={job.id}", "TimeLimit=1")
        job.wait_for_log("told to end (reason: TimeLimit)")
        job.wait_until(lambda: job.num_restarts == 1)
        cluster.run("scontrol", "update", f"JobId={job.id}", "TimeLimit=60")


def preemption(cluster, job):
    job.wait_for_progress()
    urgent = cluster.submit("--partition=urgent", "--exclusive", f"--nodelist={','.join(job.nodes)}", "--wrap=sleep 1")
    assert cluster.wait(urgent) == "COMPLETED"


def requeue(cluster, job):
    job.wait_for_progress()
    cluster.run("scontrol", "requeue", job.id)


def power_cut(cluster, job):
    """The second node is gone, without a word to the first."""
    job.wait_for_progress()
    node = job.nodes[1]
    cluster.stop_node(node)
    job.wait_until(lambda: job.num_restarts == 1)
    cluster.start_node(node)


def killed_worker(cluster, job):
    job.wait_for_progress()
    job.signal_workers("KILL")


DISTURBANCES = [save_beyond_time_limit, time_limit, power_cut, nothing,
                time_limit_at_start, preemption, requeue, killed_worker]
IDS = [disturbance.__name__ for disturbance in DISTURBANCES]


@pytest.fixture(scope="module")
def undisturbed(runs):
    """The losses of a run without Slurm."""
    losses = runs.train_here("undisturbed")
    assert len(losses) == ITERATIONS
    return losses


@pytest.fixture(scope="module")
def disturbed(cluster, runs):
    """Disturbance -> future of its job and losses. Two at a time: there is much to wait for."""
    def train(disturb):
        job = TrainingJob(cluster, runs, disturb.__name__)
        disturb(cluster, job)
        return job, job.losses()

    with ThreadPoolExecutor(2) as pool:
        yield {disturb: pool.submit(train, disturb) for disturb in DISTURBANCES}
        pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("disturbance", DISTURBANCES, ids=IDS)
def test_losses_are_those_of_an_undisturbed_run(disturbed, undisturbed, disturbance):
    job, losses = disturbed[disturbance].result()
    assert losses == undisturbed
    assert job.num_restarts == (disturbance is not nothing), job.log


@pytest.mark.parametrize("disturbance", [time_limit, time_limit_at_start, preemption], ids=lambda d: d.__name__)
def test_a_job_that_is_asked_to_leave_loses_no_iteration(disturbed, disturbance):
    assert_no_iteration_was_lost(disturbed[disturbance].result()[0])


def assert_no_iteration_was_lost(job):
    saved, = re.findall(r"asked to stop; saved after iteration (\d+)", job.log)
    resumed, = re.findall(r"resumed after iteration (\d+)", job.log)
    assert saved == resumed


def test_each_start_leaves_its_provenance_and_adds_to_the_log(disturbed):
    job, _ = disturbed[requeue].result()
    assert "start 1]" in job.log
    assert "start 2]" in job.log
    for start in "01":
        folder = job.folder / "provenance" / f"{job.id}-{start}"
        assert (folder / "script").read_text().startswith("#!/usr/bin/env bash")
        assert "torch==" in (folder / "packages").read_text()
        assert f"SLURM_JOB_ID={job.id}" in (folder / "environment").read_text()


def test_preemption_that_signals_only_the_steps(cluster, runs, undisturbed, disturbed):
    """Without preempt_send_user_signal the script hears nothing: the trainer leaves, and Slurm tells why."""
    for future in disturbed.values():
        future.exception()  # all have ended: the setting holds for the whole cluster
    cluster.configure(SlurmctldParameters="max_dbd_msg_action=discard")
    try:
        job = TrainingJob(cluster, runs, "preempted_in_silence")
        preemption(cluster, job)
    finally:
        cluster.configure(SlurmctldParameters="preempt_send_user_signal")
    assert job.losses() == undisturbed
    assert "requeued: preempted" in job.log
    assert_no_iteration_was_lost(job)
