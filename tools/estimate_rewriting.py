"""Estimate what a rewriting run costs: a sample is rewritten for a minute with the settings of the run.

    python -m tools.estimate_rewriting documents=work/high model=work/model tokenizer=work/model engine=vllm
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from megatron_ext.data.rewriting.environment import enter_vllm_environment
from megatron_ext.data.rewriting.estimate import CALIBRATION_SECONDS, estimate_cost
from megatron_ext.data.rewriting.settings import RewriteSettings
from megatron_ext.errors import exit_on_user_error
from megatron_ext.settings import describe, load_settings


@exit_on_user_error
def main() -> None:
    """Calibrate and print the estimate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     epilog="settings:\n" + describe(RewriteSettings))
    parser.add_argument("--config", type=Path, help="YAML file of settings, as of tools.rewrite_corpus")
    parser.add_argument("--seconds", type=float, default=CALIBRATION_SECONDS, help="how long requests are sent")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that win over the file's")
    arguments = parser.parse_intermixed_args()
    settings = load_settings(RewriteSettings, arguments.config, arguments.overrides)
    if settings.engine == "vllm":
        enter_vllm_environment()
    calibration, estimate = estimate_cost(settings, arguments.seconds)
    print(f"calibration: {calibration.num_asked:,} chunks, {calibration.num_completion_tokens:,} tokens in "
          f"{calibration.seconds:.0f} s; {calibration.num_survived:,} chunks survived the checks")
    print("\n".join(estimate.lines()))


if __name__ == "__main__":
    sys.exit(main())
