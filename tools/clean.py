"""What in a work folder no study uses any more: python -m tools.clean WORK [STUDY.yaml …] [--delete] [key=value …]

The studies are those that were submitted or run from the folder, and the study files that are named. Nothing is deleted
without `--delete`, and never what a study uses, what a process holds, or what an older version has made.
"""

from __future__ import annotations

import argparse
import sys

from megatron_ext.errors import exit_on_user_error
from megatron_ext.settings import path_argument
from megatron_ext.study.leftovers import Leftover, delete, find_leftovers, used_folders
from megatron_ext.study.plan import load_studies


@exit_on_user_error
def main(argv: list[str] | None = None) -> int:
    """List what no study uses, by stage; delete it if asked to."""
    arguments = _parse(argv)
    used = used_folders(arguments.work, load_studies(arguments.studies, arguments.overrides))
    leftovers = find_leftovers(arguments.work, set().union(*used.values()))
    for stage in dict.fromkeys(leftover.stage for leftover in leftovers):
        _print_stage(stage, [leftover for leftover in leftovers if leftover.stage == stage])
    free = [leftover for leftover in leftovers if leftover.kept_because is None]
    total = f"{len(free)} folders, {sum(leftover.num_bytes for leftover in free) / 1e9:,.3f} GB"
    print(f"all else is used by {', '.join(used)}; {total} can go"
          + ("" if arguments.delete or not free else " (--delete deletes them)"))
    if arguments.delete:
        delete(free)
        print(f"deleted: {total}")
    return 0


def _print_stage(stage: str, leftovers: list[Leftover]) -> None:
    print(f"{stage}: {sum(leftover.num_bytes for leftover in leftovers) / 1e9:,.3f} GB")
    for leftover in leftovers:
        why = f"; stays: {leftover.kept_because}" if leftover.kept_because else ""
        print(f"  {leftover.num_bytes / 1e9:10,.3f} GB  {leftover.path}{why}")


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     allow_abbrev=False)
    parser.add_argument("work", type=path_argument, help="work folder of run_study or submit_study")
    parser.add_argument("studies", nargs="*", metavar="STUDY.yaml",
                        help="study files whose work is kept; after them `key=value` as they were run with")
    parser.add_argument("--delete", action="store_true", help="delete what is listed")
    arguments = parser.parse_intermixed_args(argv)
    words = arguments.studies
    arguments.overrides = [word for word in words if "=" in word]
    arguments.studies = [path_argument(word) for word in words if "=" not in word]
    return arguments


if __name__ == "__main__":
    sys.exit(main())
