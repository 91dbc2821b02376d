"""Prove that a model under a training layout gives transformers' logits, over every position of a Portuguese text.

    torchrun --nproc-per-node 2 -m tools.check_parity --output work/parity model=work/models/smollm2 \\
        parallel.pipeline_model_parallel_size=2
"""

from __future__ import annotations

import sys

from megatron_ext.errors import exit_on_user_error
from megatron_ext.model.previews import describe_parity
from megatron_ext.model.settings import ParitySettings
from megatron_ext.processes import die_with_launcher
from megatron_ext.settings import parse_stage_arguments


@exit_on_user_error
def main() -> int:
    """Compare under the layout that torchrun started; exit code 1 when the logits differ."""
    die_with_launcher()
    settings, output = parse_stage_arguments(ParitySettings, __doc__ or "", preview=describe_parity)
    from megatron_ext.model.distributed import process_groups  # torch and megatron: not for a wrong command line
    from megatron_ext.model.parity import ParityError
    from megatron_ext.model.parity_check import check_parity

    try:
        with process_groups(settings.parallel):
            check_parity(settings, output)
    except ParityError:
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
