"""Stage 5b: a Megatron checkpoint of any layout to a Hugging Face folder, in one process on a CPU, parity proven.

    python -m tools.export_hf --output work/exported checkpoint=work/run/checkpoints/iter_0000100

While training goes on, each of its checkpoints as it appears, into work/exported/iter_…, until the run is finished:

    python -m tools.export_hf --output work/exported checkpoint=work/run follow=true
"""

from __future__ import annotations

import sys

from megatron_ext.errors import exit_on_user_error
from megatron_ext.model.previews import describe_export
from megatron_ext.model.settings import ExportSettings
from megatron_ext.settings import parse_stage_arguments


@exit_on_user_error
def main() -> int:
    """Export; exit code 1 when the logits differ."""
    settings, output = parse_stage_arguments(ExportSettings, __doc__ or "", preview=describe_export)
    from megatron_ext.model.hf_export import export_hf, export_run  # torch and megatron: not for a wrong command line
    from megatron_ext.model.parity import ParityError

    try:
        for artifact in export_run(settings, output) if settings.follow else [export_hf(settings, output)]:
            counts = artifact.counts
            print(f"{settings.checkpoint} -> {artifact.path}: {counts['num_parameters']:,} parameters, "
                  f"{counts['dtype']}", flush=True)
    except ParityError:
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
