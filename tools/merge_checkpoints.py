"""The mean of Megatron checkpoints, of one run or several, as a checkpoint: tensor by tensor, in one process on a CPU.

    python -m tools.merge_checkpoints --output work/merged \\
        checkpoints='[run/checkpoints/iter_0000900, run/checkpoints/iter_0000950, run/checkpoints/iter_0001000]'

It is exported and measured as any other.
"""

from __future__ import annotations

import sys

from megatron_ext.errors import exit_on_user_error
from megatron_ext.model.previews import describe_merge
from megatron_ext.model.settings import MergeSettings
from megatron_ext.settings import parse_stage_arguments


@exit_on_user_error
def main() -> int:
    """Merge."""
    settings, output = parse_stage_arguments(MergeSettings, __doc__ or "", preview=describe_merge)
    for _ in describe_merge(settings):  # all that is wrong at once, before torch is there
        pass
    from megatron_ext.model.merge import merge_checkpoints

    counts = merge_checkpoints(settings, output).counts
    print(f"{len(settings.checkpoints)} checkpoints -> {output}: {counts['num_parameters']:,} parameters, "
          f"{counts['dtype']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
