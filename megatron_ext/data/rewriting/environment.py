"""vLLM pins a torch of its own and lives in an environment of its own: the program that needs it goes on there."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

from megatron_ext.errors import UserError

PYTHON_VARIABLE = "VLLM_PYTHON"
_CHECKOUT = Path(__file__).parents[3]


def enter_vllm_environment() -> None:
    """Replace this process by the same command under a Python that has vLLM; returns where this one has it.

    That Python is .venv-vllm's of the checkout (`make vllm`), or what the environment variable VLLM_PYTHON names.
    Raises UserError when there is none.
    """
    if importlib.util.find_spec("vllm") is not None:
        return
    python = find_vllm_python()
    if python is None:
        raise UserError(f"engine = vllm: vLLM is not installed; run `make vllm`, or name a Python that has it in "
                        f"{PYTHON_VARIABLE}")
    if Path(sys.prefix) == python.parent.parent:
        raise UserError(f"engine = vllm: {python} has no vLLM either")
    sys.stdout.flush()
    os.execv(python, [str(python), *sys.orig_argv[1:]])


def find_vllm_python() -> Path | None:
    """The Python of the environment with vLLM, if there is one."""
    named = os.environ.get(PYTHON_VARIABLE)
    python = Path(named) if named else _CHECKOUT / ".venv-vllm" / "bin" / "python"
    return python if python.exists() else None
