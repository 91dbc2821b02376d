"""Which raw data of PoETa V2 is at hand: one line a task.

    python -m evaluation.poeta.status
    python -m evaluation.poeta.status --data poeta_data

Nothing is downloaded. Status: official (known bytes, or fetched from the public source), local (yours, nothing known
about its bytes), missing. Rows and licences are those of evaluation/poeta/data/sources.yaml, `?` where not known.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from evaluation.poeta.sources import find_raw_data, least_official, manifest_entry
from evaluation.poeta.table import TaskSpec, task_table
from megatron_ext.errors import UserError, exit_on_user_error


def task_status(spec: TaskSpec, folder: Path | None) -> str:
    """official, local or missing. `folder` as in find_raw_data; raises UserError where it does not exist."""
    if folder is not None and not folder.is_dir():
        raise UserError(f"data folder {folder} does not exist")
    try:
        found = find_raw_data([spec], folder, allow_download=False)
    except UserError:
        return "missing"
    return least_official(piece.origin for piece in found.values())


def task_rows(spec: TaskSpec) -> int | None:
    """Records in all raw data of a task; None where that is not known of a piece."""
    rows = [manifest_entry(name).get("rows") for name in spec.raw_names()]
    return None if None in rows else sum(rows)


def task_licences(spec: TaskSpec) -> list[str]:
    """Licences of a task's raw data, as far as known."""
    licences = [manifest_entry(name).get("licence") for name in spec.raw_names()]
    return list(dict.fromkeys(licence for licence in licences if licence))


@exit_on_user_error
def main() -> None:
    """Parse the command line, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of raw data; none: the environment variable POETA_DATA")
    folder = parser.parse_args().data
    print(f"{'task':<58}{'status':<10}{'rows':>8}  licence")
    for name, spec in task_table().items():
        rows = task_rows(spec)
        print(f"{name:<58}{task_status(spec, folder):<10}{'?' if rows is None else f'{rows:,}':>8}  "
              f"{', '.join(task_licences(spec)) or '?'}")


if __name__ == "__main__":
    sys.exit(main())
