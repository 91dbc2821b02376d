"""When slurm/train.sbatch does not start, leaves its nodes, or gives up; and what it then says."""

import pytest

from tests.slurm.tiny_run import TrainingJob

pytestmark = pytest.mark.slow


def ended(cluster, job):
    """State, exit code and number of requeues of a job once it has ended."""
    state = cluster.wait(job.id)
    return state, job.exit_code, job.num_restarts


def test_everything_wrong_with_the_site_is_told_before_submission(cluster):
    site = cluster.write_site("wrong.env", CONTAINER_IMAGE="/images/absent.sqsh", SCRATCH="/proc/scratch")
    done = cluster.run("bash", "slurm/check_site.sh", "--nodes=2", "--gpus-per-node=9", check=False, SITE=site)
    assert done.returncode == 2
    image, scratch, gpus = done.stderr.splitlines()
    assert "container image /images/absent.sqsh is missing" in image
    assert "scratch folder /proc/scratch cannot be written" in scratch
    assert "Requested node configuration is not available" in gpus
    assert "gpu:h100:8" in gpus


def test_a_right_site_passes(cluster):
    assert cluster.run("bash", "slurm/check_site.sh", "--nodes=2", "--gpus-per-node=8").stderr == ""


@pytest.mark.parametrize(("site", "overrides", "reason"), [
    ({"CONTAINER_IMAGE": "/images/absent.sqsh"}, [], "container image /images/absent.sqsh is missing"),
    ({"GPUS_PER_NODE": 16, "PROCESSES_PER_NODE": ""}, [], "16 processes a node need as many GPUs, Slurm gave 8"),
    ({}, ["parallel.tensor_model_parallel_size=2"], "2 processes are no multiple of tensor_model_parallel_size 2"),
])
def test_refused_at_the_start(cluster, runs, site, overrides, reason):
    job = TrainingJob(cluster, runs, "refused", *overrides, SITE=cluster.write_site("refused.env", **site))
    assert ended(cluster, job) == ("FAILED", 2, 0)
    assert reason in job.log
    assert not (job.folder / "metrics.jsonl").exists()


def test_a_job_leaves_unfit_and_excluded_nodes(cluster, runs):
    """node1 is excluded by site.env; node2 has lost its scratch folder."""
    scratch = cluster.folder / "scratch"
    cluster.on_node("node2", "mount", "-t", "tmpfs", "-o", "ro", "tmpfs", scratch)
    try:
        job = TrainingJob(cluster, runs, "unfit", SITE=cluster.write_site("excluded.env", EXCLUDED_NODES="node1"))
        job.wait_for_log("start 2] nodes node[3-4]")
    finally:
        cluster.on_node("node2", "umount", scratch)
    assert f"node2 is unfit: {scratch} cannot be written" in job.log
    assert "requeued without node1,node2" in job.log
    cluster.run("scancel", job.id)
    assert cluster.wait(job.id) == "CANCELLED"


def test_no_fit_nodes_are_left(cluster, runs):
    """Slurm has given the job GPUs, but none that compute."""
    site = cluster.write_site("gpus.env", GPUS_PER_NODE=2, PROCESSES_PER_NODE="")
    job = TrainingJob(cluster, runs, "no_gpus", num_gpus=2, SITE=site)
    assert ended(cluster, job) == ("FAILED", 95, 1)
    for node in cluster.nodes:
        assert f"{node} is unfit: python: 0 GPUs are visible, needed are 2" in job.log


def test_a_crash_without_progress_is_not_repeated(cluster, runs):
    job = TrainingJob(cluster, runs, "no_progress", has_checkpoints=False)
    job.wait_for_progress()
    job.signal_workers("KILL")
    assert ended(cluster, job) == ("FAILED", 93, 0)


def test_not_more_crashes_than_allowed(cluster, runs):
    job = TrainingJob(cluster, runs, "crashes", SITE=cluster.write_site("no_restarts.env", MAX_RESTARTS=0))
    job.wait_for_progress()
    job.signal_workers("KILL")
    assert ended(cluster, job) == ("FAILED", 94, 0)
