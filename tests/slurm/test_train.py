"""slurm/train.sbatch on a real cluster, two nodes and pipeline parallelism across them."""

import pytest

from tests.slurm.tiny_run import ITERATIONS, TinyRuns

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return TinyRuns(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def undisturbed(runs):
    """The losses of a run without Slurm."""
    process = runs.start_here("undisturbed")
    output, _ = process.communicate(timeout=180)
    assert process.returncode == 0, output
    losses = runs.losses("undisturbed")
    assert len(losses) == ITERATIONS
    return losses


def test_two_nodes_give_the_losses_of_one_machine(cluster, runs, undisturbed):
    job = cluster.submit("--nodes=2", "slurm/train.sbatch", runs.config("plain"))
    assert cluster.wait(job) == "COMPLETED", cluster.log(job).read_text()
    assert runs.losses("plain") == undisturbed
