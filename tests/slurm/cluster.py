"""A real Slurm cluster on this machine, for as long as a test session: see cluster.sh."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("cluster.sh")
PROGRAMS = {"slurmctld": "slurmctld", "slurmd": "slurmd", "sbatch": "slurm-client", "munged": "munge",
            "ip": "iproute2"}  # program -> Debian package
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "PREEMPTED", "NODE_FAIL", "OUT_OF_MEMORY"}

# How a cluster of CPUs differs from slurm/site.env.
SITE = """source slurm/site.env
prepare_environment() { source .venv/bin/activate; export OMP_NUM_THREADS=1; }
GPUS_PER_NODE=0
PROCESSES_PER_NODE=1
MAX_RESTARTS=5
MIN_FREE_GIB=1
"""


def why_not() -> str | None:
    """Why a cluster cannot be started on this machine, or None."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "a Slurm cluster needs Linux and root"
    if missing_packages() and not shutil.which("apt-get"):
        return f"Slurm is not installed ({', '.join(missing_packages())}), and there is no apt-get to install it"
    try:
        subprocess.run([*_NAMESPACES, "true"], check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        return f"no namespaces can be made here: {getattr(error, 'stderr', error)}"
    return None


def missing_packages() -> list[str]:
    """Debian packages that are still to be installed."""
    return sorted({package for program, package in PROGRAMS.items() if not shutil.which(program)})


def install_packages() -> None:
    """Install what is missing (about 20 s)."""
    if packages := missing_packages():
        apt = ["apt-get", "-qq", "-o", "DPkg::Lock::Timeout=300"]
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        for command in ([*apt, "update"], [*apt, "install", "--yes", "--no-install-recommends", *packages]):
            subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)


_NAMESPACES = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "--net", "--uts", "--ipc"]


class Cluster:
    """A running cluster. Node names are node1, node2, …; partitions `batch` and `urgent`, which preempts it."""

    def __init__(self, folder: Path, num_nodes: int) -> None:
        self.folder = folder
        self.nodes = [f"node{number + 1}" for number in range(num_nodes)]
        self.site = self.write_site("site.env")
        # The kernel ends the cluster with this process, even after kill -9.
        self._process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *_NAMESPACES, "bash", str(SCRIPT), "up", str(folder), str(num_nodes)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        if self._process.stdout.readline() != "ready\n":
            raise RuntimeError(f"the cluster did not start: {self._process.communicate()[1]}")
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        self._first_process = children.read_text().split()[0]

    def close(self) -> None:
        """End all its processes."""
        self._process.kill()
        self._process.communicate()

    def write_site(self, name: str, **changes: object) -> Path:
        """A site file for jobs (environment variable SITE)."""
        lines = [f"{key}={str(value)!r}\n" for key, value in {"SCRATCH": self.folder / "scratch", **changes}.items()]
        (self.folder / "scratch").mkdir(exist_ok=True)
        path = self.folder / name
        path.write_text(SITE + "".join(lines))
        return path

    def run(self, *command: object, check: bool = True, **environment: object) -> subprocess.CompletedProcess:
        """Run a program on the cluster's login node, in the checkout."""
        inside = ["nsenter", "--target", self._first_process, "--pid", "--net", "--mount", "--uts", "--ipc",
                  f"--wd={ROOT}"]
        settings = {"SLURM_CONF": self.folder / "slurm.conf", "SITE": self.site, **environment}
        done = subprocess.run([*inside, *map(str, command)], capture_output=True, text=True,
                              env=os.environ | {key: str(value) for key, value in settings.items()})
        if check and done.returncode:
            raise RuntimeError(f"{command} ended with code {done.returncode}:\n{done.stdout}{done.stderr}")
        return done

    def submit(self, *arguments: object, **environment: object) -> str:
        """Submit a job with sbatch's arguments; its id. Its log is `log(job)`."""
        log = self.folder / "log" / "job-%A_%a.log" if "--array" in " ".join(map(str, arguments)) else self.log("%j")
        return self.run("sbatch", "--parsable", f"--output={log}", *arguments, **environment).stdout.strip()

    def log(self, job: str) -> Path:
        """The log of a job that `submit` started."""
        return self.folder / "log" / f"job-{job}.log"

    def show(self, job: str) -> dict[str, str]:
        """What `scontrol show job` tells, by key."""
        output = self.run("scontrol", "--oneliner", "show", "job", job).stdout
        return dict(word.split("=", 1) for word in output.split() if "=" in word)

    def state(self, job: str) -> str:
        """PENDING, RUNNING, COMPLETED, FAILED, …"""
        return self.show(job)["JobState"]

    def wait(self, job: str, timeout_seconds: float = 180) -> str:
        """Wait until a job has ended; its state."""
        self.wait_until(lambda: self.state(job) in ENDED, job, timeout_seconds)
        return self.state(job)

    def wait_until(self, condition: Callable[[], bool], job: str, timeout_seconds: float = 120) -> None:
        """Poll; a failure shows the job's log."""
        deadline = time.monotonic() + timeout_seconds
        while not condition():
            if time.monotonic() > deadline:
                log = self.log(job).read_text() if self.log(job).exists() else "(no log)"
                raise AssertionError(f"waited {timeout_seconds} s in vain; job {job}: {self.show(job)}\n{log}")
            time.sleep(0.1)

    def configure(self, **settings: object) -> None:
        """Change lines of slurm.conf and have the controller read it again."""
        path = self.folder / "slurm.conf"
        for key, value in settings.items():
            lines = [f"{key}={value}" if line.startswith(f"{key}=") else line for line in path.read_text().splitlines()]
            path.write_text("\n".join(lines) + "\n")
        self.run("scontrol", "reconfigure")

    def stop_node(self, node: str) -> None:
        """A power cut of one node."""
        self.run("bash", SCRIPT, "stop_node", self.folder, node.removeprefix("node"))

    def start_node(self, node: str) -> None:
        """The node is back; returns when jobs can use it."""
        self.run("bash", SCRIPT, "start_node", self.folder, node.removeprefix("node"))

    def on_node(self, node: str, *command: object) -> subprocess.CompletedProcess:
        """Run a program with a node's network, host name and mounts."""
        pid = (self.folder / f"{node}.pid").read_text().strip()
        return self.run("nsenter", "--target", pid, "--net", "--mount", "--uts", *command)
