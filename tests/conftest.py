"""How the tests are shared among the workers of pytest-xdist (`make test` starts two)."""

import os

from xdist.scheduler import LoadScopeScheduling

CLUSTER = "tests/slurm/"

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the cores are shared: waiting for one's own threads costs the most


class FileOrCluster(LoadScopeScheduling):
    """A file belongs to one worker, for the sake of its fixtures; so do all tests on the Slurm cluster."""

    def _split_scope(self, nodeid):
        return CLUSTER if nodeid.startswith(CLUSTER) else nodeid.split("::")[0]


def pytest_xdist_make_scheduler(config, log):
    return FileOrCluster(config, log)


def pytest_collection_modifyitems(items):
    """The tests on the cluster come first: they wait a lot, beside the others."""
    items.sort(key=lambda item: not item.nodeid.startswith(CLUSTER))
