"""Continued pretraining on megatron-core.

    torchrun --nproc-per-node 2 -m megatron_ext.train --config examples/base/smollm2_135m_cpu.yaml \
        output=work/run parallel.pipeline_model_parallel_size=2
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import warnings
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path

from megatron_ext.artifacts import check_inputs, is_finished
from megatron_ext.config import RunConfig
from megatron_ext.errors import exit_on_user_error
from megatron_ext.lease import LEASE, current_holder, lease
from megatron_ext.processes import die_with_parent, leave_with_parent
from megatron_ext.settings import describe, load_settings
from megatron_ext.training.preflight import check_run, describe_run
from megatron_ext.training.resume import find_start
from megatron_ext.training.run_folder import run_inputs


@exit_on_user_error
def main(argv: list[str] | None = None) -> int:
    """Run or resume a training run; exit code 0 when it is finished or was stopped on request."""
    arguments = _parse(argv)
    config = load_settings(RunConfig, arguments.config, arguments.overrides)
    check_run(config, arguments.num_processes)
    if arguments.dry_run:
        print(find_start(config).describe())
        if holder := current_holder(config.output / LEASE):
            print(f"held by {holder}: until it ends, another launch is refused")
        print(describe_run(config, arguments.num_processes))
    else:
        _train(config)
    return 0


def _train(config: RunConfig) -> None:
    if "TORCHELASTIC_RUN_ID" in os.environ:
        leave_with_parent()
    os.register_at_fork(after_in_child=die_with_parent)  # the checkpoint's writers
    # Both warn at import and in every save of what a user cannot change; their errors still come through.
    warnings.filterwarnings("ignore", module=r"megatron\.|torch\.")
    logging.getLogger("megatron").setLevel(logging.ERROR)
    # Imported here: a checkpoint writer that is spawned imports this module again and needs none of it.
    from megatron_ext.model.parallel import (
        initialize_parallel,
        on_first_rank_of_each_node,
        on_main_rank,
        shut_down_parallel,
    )
    from megatron_ext.training.loop import train

    initialize_parallel(config.parallel)
    try:
        with ExitStack() as held:
            on_main_rank(lambda: held.enter_context(_lease(config)))
            on_first_rank_of_each_node(lambda: check_inputs(_inputs(config)))
            train(config)
    finally:
        shut_down_parallel()


def _lease(config: RunConfig) -> AbstractContextManager[None]:
    """The right to write into the run folder; a finished run is not written to, unless it is to go back or further."""
    if is_finished(config.output) and config.resume_from is None and find_start(config).is_finished:
        return nullcontext()
    config.output.mkdir(parents=True, exist_ok=True)
    return lease(config.output / LEASE, config.output)


def _inputs(config: RunConfig) -> list[Path]:
    """What each node reads, and has to have in the bytes that it was made of."""
    return [*run_inputs(config).values(), *config.validation.sources.values()]


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, epilog="settings:\n" + describe(RunConfig),
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True, help="YAML file of the run")
    parser.add_argument("--dry-run", action="store_true", help="check the run, print its arithmetic and leave")
    parser.add_argument("--num-processes", type=int, help="check for so many processes (default: as torchrun says)")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings that win over the file's")
    return parser.parse_intermixed_args(argv)


if __name__ == "__mp_main__":  # a helper that megatron-core's checkpoint writer has spawned
    die_with_parent()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # Slurm sends it to every process of a step; the trainer still saves

if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    os._exit(code) if code else sys.exit(0)  # a failed rank must not wait for threads of its process groups
