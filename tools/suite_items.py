"""Write the items of suites as plain texts, for `neutral=` of tools.find_overlap and `test_items=` of
tools.select_corpus.

    python -m tools.suite_items --output work/items suites='{english: {tasks: [hellaswag, arc_easy]}}'
"""

from __future__ import annotations

import sys

from evaluation.suites.items import SuiteItemsSettings, write_suite_items
from megatron_ext.errors import exit_on_user_error
from megatron_ext.settings import parse_stage_arguments


@exit_on_user_error
def main() -> None:
    """Parse the command line, write, say how many."""
    settings, output = parse_stage_arguments(SuiteItemsSettings, __doc__ or "")
    for name, number in write_suite_items(settings, output).counts["items"].items():
        print(f"{output}: {number:,} items of {name}")


if __name__ == "__main__":
    sys.exit(main())
