"""What slurm/site.env says of a cluster."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

from megatron_ext.errors import UserError

CHECKOUT = Path(__file__).resolve().parents[2]
"""Where the scripts of jobs lie; jobs run here, whatever folder they were submitted from."""
SITE_FILE = CHECKOUT / "slurm" / "site.env"
CHECK_SITE = CHECKOUT / "slurm" / "check_site.sh"
"""Program that tells what is wrong with the places that a site file names."""
_READ = ('source "$1" >&2 && printf "%s\\0" "$GPUS_PER_NODE" "$PROCESSES_PER_NODE" "$EXCLUDED_NODES" '
         '"${SBATCH_OPTIONS[@]}"')


@dataclass(frozen=True)
class Site:
    """A cluster."""

    file: Path
    gpus_per_node: int
    """0: the stages run on CPUs."""
    processes_per_node: int
    """Training processes of a full node."""
    sbatch_options: tuple[str, ...]
    """Options of every sbatch call."""


THIS_MACHINE = Site(Path(), gpus_per_node=0, processes_per_node=2**30, sbatch_options=())
"""One node of any size: where run_study runs."""


def read_site(file: Path = SITE_FILE) -> Site:
    """Read a site file by sourcing it in bash.

    Raises UserError when it is not there, fails, or holds no number where one is needed.
    """
    if not file.exists():
        raise UserError(f"{file} does not exist; start the program in the checkout, or name the file in SITE")
    done = subprocess.run(["bash", "-c", _READ, "site", str(file.absolute())], capture_output=True, text=True,
                          cwd=CHECKOUT)
    if done.returncode:
        raise UserError(f"{file}: bash cannot read it: {done.stderr.strip()}")
    gpus, processes, excluded, *options, _ = done.stdout.split("\0")
    num_gpus = _number(file, "GPUS_PER_NODE", gpus)
    return Site(
        file=file.absolute(),
        gpus_per_node=num_gpus,
        processes_per_node=_number(file, "PROCESSES_PER_NODE", processes) if processes else max(1, num_gpus),
        sbatch_options=(*filter(None, options), *([f"--exclude={excluded}"] if excluded else [])),
    )


def _number(file: Path, name: str, text: str) -> int:
    if not text.isdigit():
        raise UserError(f"{file}: {name}={text!r} is no number of 0 or more")
    return int(text)
