"""Compare what is there of a submitted study and make its page: python -m tools.report_study WORK NAME"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from megatron_ext.errors import exit_on_user_error
from megatron_ext.study.reporting import comparisons_of_what_is_there, study_report
from megatron_ext.study.runner import run_nodes


@exit_on_user_error
def main(argv: list[str] | None = None) -> int:
    """Make the page and tell its place."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path, help="work folder of the study")
    parser.add_argument("name", help="name of the study, as in <work>/studies/<name>.json; signs are dashes")
    arguments = parser.parse_args(argv)
    run_nodes(comparisons_of_what_is_there(arguments.work, arguments.name), arguments.work).require_all()
    node = study_report(arguments.work, arguments.name)
    run_nodes([node], arguments.work).require_all()
    print(f"report: {node.output(arguments.work) / 'report.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
