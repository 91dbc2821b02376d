"""Held-out loss of a model or checkpoint on validation splits; any source, whatever the model was trained on.

    torchrun --nproc-per-node 2 -m megatron_ext.validate --output work/held_out \
        checkpoint=run/checkpoints/iter_0000100 sources='{high: work/high_bin}' \
        parallel.pipeline_model_parallel_size=2
"""

from __future__ import annotations

import sys

from megatron_ext.errors import exit_on_user_error
from megatron_ext.processes import die_with_launcher
from megatron_ext.settings import parse_stage_arguments
from megatron_ext.training.settings import HeldOutSettings


@exit_on_user_error
def main() -> int:
    """Measure under the layout that torchrun started, and tell the losses."""
    die_with_launcher()
    settings, output = parse_stage_arguments(HeldOutSettings, __doc__ or "")
    from megatron_ext.model.distributed import process_groups
    from megatron_ext.training.held_out import measure_held_out

    with process_groups(settings.parallel):
        artifact = measure_held_out(settings, output)
    if artifact is not None:
        for name, loss in artifact.counts["sources"].items():
            print(f"held-out {name}: {loss['nats_per_token']:.4f} nats/token, {loss['bits_per_byte']:.4f} bits/byte "
                  f"over {loss['num_tokens']:,} tokens")
    return 0


if __name__ == "__main__":
    sys.exit(main())
