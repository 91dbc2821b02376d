"""Take the original text of exactly the chunks whose rewrites were accepted: the survivor-matched control.

    python -m tools.take_originals --output work/originals rewrites=work/rewrites tokenizer=models/tinyllama
"""

from __future__ import annotations

import sys

from megatron_ext.data.rewriting.originals import OriginalsSettings, take_originals
from megatron_ext.errors import exit_on_user_error
from megatron_ext.settings import parse_stage_arguments


@exit_on_user_error
def main() -> None:
    """Run the stage."""
    settings, output = parse_stage_arguments(OriginalsSettings, __doc__ or "")
    originals = take_originals(settings, output)
    print(f"{originals.counts['documents']:,} documents, {originals.counts['tokens']:,} tokens -> {originals.path}")


if __name__ == "__main__":
    sys.exit(main())
