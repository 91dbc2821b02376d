"""How the tests are shared among the workers of pytest-xdist (`make test` starts two), and what each leaves behind."""

import os
import signal
import sys

import pytest
from xdist.scheduler import LoadScopeScheduling

CLUSTER = "tests/slurm/"

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the cores are shared: waiting for one's own threads costs the most

# A shell starts what goes to the background with Ctrl-C ignored, and all that is started from there inherits it.
signal.signal(signal.SIGINT, signal.default_int_handler)


class FileOrCluster(LoadScopeScheduling):
    """A file belongs to one worker, for the sake of its fixtures; so do all tests on the Slurm cluster."""

    def _split_scope(self, nodeid):
        return CLUSTER if nodeid.startswith(CLUSTER) else nodeid.split("::")[0]


def pytest_xdist_make_scheduler(config, log):
    return FileOrCluster(config, log)


def pytest_collection_modifyitems(items):
    """The tests on the cluster come first: they wait a lot, beside the others."""
    items.sort(key=lambda item: not item.nodeid.startswith(CLUSTER))


@pytest.fixture(autouse=True)
def number_of_threads():
    """An engine takes all cores for its process. Left so, the next test's numbers would differ in the last bits from
    those of a process that it starts."""
    yield
    if "torch" in sys.modules and "OMP_NUM_THREADS" in os.environ:
        sys.modules["torch"].set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
