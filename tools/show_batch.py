"""Which documents were in an iteration of a training run? One line for each stretch of a document.

    python -m tools.show_batch --config work/run/config.yaml --iteration 120
    python -m tools.show_batch --config work/run/config.yaml --iteration 120 --text
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from megatron_ext.config import RunConfig
from megatron_ext.data.inspection import decode_sequence, open_dataset
from megatron_ext.data.provenance import iteration_positions, open_run_data, sample_passages
from megatron_ext.errors import UserError, exit_on_user_error
from megatron_ext.settings import load_settings
from megatron_ext.training.preflight import source_sizes
from megatron_ext.training.resume import CONFIG
from megatron_ext.training.trunk import open_trunk, plan_run


@exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    """Print JSON lines: position of the sample in the run, source, document, and which of its tokens."""
    arguments = _parse(argv)
    config = with_iteration(load_settings(RunConfig, arguments.config, arguments.overrides), arguments.iteration)
    dataset = open_run_data(config, plan_run(config, source_sizes(config)))
    for position in iteration_positions(config, arguments.iteration):
        for passage in sample_passages(dataset, position):
            if arguments.text:
                tokenized = open_dataset(config.data.sources[passage["source"]].path)
                passage["text"] = decode_sequence(tokenized, passage["sequence"], config.model.hf_folder)
            print(json.dumps({"sample": position, **passage}, ensure_ascii=False))


def with_iteration(config: RunConfig, iteration: int) -> RunConfig:
    """The run that an iteration belongs to: this one, or its trunk, or the trunk of that."""
    while config.start and iteration <= open_trunk(config.start).iteration:
        trunk = config.start.checkpoint.resolve().parents[1] / CONFIG
        if not trunk.exists():
            raise UserError(f"iteration {iteration} was the trunk's, and {trunk} is not there: give the config.yaml of "
                            "the trunk's run")
        print(f"iteration {iteration} was the trunk's: {trunk}", file=sys.stderr)
        config = load_settings(RunConfig, trunk, [])
    return config


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True, help="config.yaml of the run's folder")
    parser.add_argument("--iteration", type=int, required=True, help="iteration, 1 is the first, as in metrics.jsonl")
    parser.add_argument("--text", action="store_true", help="with each document's whole text")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings that win over the file's")
    return parser.parse_intermixed_args(argv)


if __name__ == "__main__":
    sys.exit(main())
