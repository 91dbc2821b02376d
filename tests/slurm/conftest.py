"""One real Slurm cluster for all tests of this folder."""

import pytest

from tests.slurm.cluster import Cluster, install_packages, why_not
from tests.slurm.tiny_run import TinyRuns


@pytest.fixture(scope="session")
def cluster(tmp_path_factory):
    if reason := why_not():
        pytest.skip(reason)
    install_packages()
    cluster = Cluster(tmp_path_factory.mktemp("slurm"), num_nodes=4)
    yield cluster
    cluster.close()


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    return TinyRuns(tmp_path_factory.mktemp("runs"))
