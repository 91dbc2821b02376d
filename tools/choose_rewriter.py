"""Name the smallest sensible rewriter if a model hub can be reached; else nothing: python -m tools.choose_rewriter

`make quickstart REWRITER=auto` asks. The name goes to stdout; what it means, the size of the download too, to stderr.
"""

from __future__ import annotations

import argparse
import fnmatch
import sys

from megatron_ext.data.model_folder import DOWNLOADED, EMBEDDED_MODEL
from megatron_ext.errors import exit_on_user_error

MODEL = "Qwen/Qwen2.5-0.5B-Instruct"
_PATIENCE_SECONDS = 10


@exit_on_user_error
def main(argv: list[str] | None = None) -> int:
    """Ask the hub."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args(argv)
    num_bytes = download_bytes(MODEL)
    if num_bytes is None:
        print(f"rewriter: no model hub can be reached; {EMBEDDED_MODEL}, which came with the installation, shows the "
              "machinery", file=sys.stderr)
    else:
        print(f"rewriter: {MODEL}, a download of {num_bytes / 1e6:,.0f} MB where it is not there yet", file=sys.stderr)
        print(MODEL)
    return 0


def download_bytes(model: str) -> int | None:
    """Bytes that fetching a model of the hub takes; None where the hub cannot be reached, or has no such model."""
    from huggingface_hub import HfApi

    try:
        info = HfApi().model_info(model, files_metadata=True, timeout=_PATIENCE_SECONDS)
    except Exception:  # whatever it is, and errors of connection have no common base, the hub is of no use now
        return None
    return sum(file.size or 0 for file in info.siblings or ()
               if any(fnmatch.fnmatch(file.rfilename, pattern) for pattern in DOWNLOADED))


if __name__ == "__main__":
    sys.exit(main())
