"""Write PoETa V2's test items as plain texts, for `test_items=` of tools.select_corpus.

    python -m tools.poeta_items --output work/items data=raw/
"""

from __future__ import annotations

import sys

from evaluation.poeta.items import ItemsSettings, write_items
from megatron_ext.errors import exit_on_user_error
from megatron_ext.settings import parse_stage_arguments


@exit_on_user_error
def main() -> None:
    """Parse the command line, write, say which tasks are there."""
    settings, output = parse_stage_arguments(ItemsSettings, __doc__ or "")
    counts = write_items(settings, output).counts
    missing = counts["tasks_without_data"]
    print(f"{output}: {sum(counts['items'].values()):,} items of {len(counts['items'])} tasks"
          + (f"; no raw data of {', '.join(missing)}" if missing else ""))


if __name__ == "__main__":
    sys.exit(main())
