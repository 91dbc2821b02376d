"""Stage 5a: Hugging Face weights to a Megatron checkpoint, with proof that the logits are the same.

    torchrun --nproc-per-node 2 -m tools.import_hf --output work/imported model=work/models/smollm2 \\
        parallel.pipeline_model_parallel_size=2
"""

from __future__ import annotations

import sys

from megatron_ext.errors import exit_on_user_error
from megatron_ext.model.previews import describe_import
from megatron_ext.model.settings import ImportSettings
from megatron_ext.settings import parse_stage_arguments


@exit_on_user_error
def main() -> int:
    """Import under the layout that torchrun started; exit code 1 when the logits differ."""
    settings, output = parse_stage_arguments(ImportSettings, __doc__ or "", preview=describe_import)
    from megatron_ext.model.distributed import process_groups  # torch and megatron: not for a wrong command line
    from megatron_ext.model.hf_import import import_hf
    from megatron_ext.model.parity import ParityError

    try:
        with process_groups(settings.parallel):
            artifact = import_hf(settings, output)
    except ParityError:
        return 1
    if artifact is not None:
        print(f"{settings.model} -> {output} ({artifact.counts['dtype']})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
