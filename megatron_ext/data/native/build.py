"""Compile the native encoder in place; `make setup` calls this.

    python -m megatron_ext.data.native.build

Nothing happens when the extension fits its source already. Where it cannot be built, this says why and succeeds all
the same: every tokenizer has an encoder that needs no compiler.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import ModuleType

_FOLDER = Path(__file__).parent
SOURCE = _FOLDER / "sentencepiece_bpe.cpp"
EXTENSION = _FOLDER / f"_sentencepiece_bpe{sysconfig.get_config_var('EXT_SUFFIX')}"
# No -march: the result must run on every node of a cluster that shares the checkout.
_FLAGS = ("-O3", "-std=c++17", "-Wall", "-Wextra", "-fPIC", "-shared", "-fvisibility=hidden")
_COMPILERS = ("c++", "g++", "clang++")
_MODULE_NAME = "megatron_ext.data.native._sentencepiece_bpe"


class NativeUnavailableError(Exception):
    """The extension cannot be built or used here; the message says why."""


def load_extension() -> ModuleType:
    """The compiled extension. Raises NativeUnavailableError when it is missing, broken or of another source."""
    if not EXTENSION.is_file():
        raise NativeUnavailableError("it is not compiled; `make setup` does that where there is a C++ compiler")
    spec = importlib.util.spec_from_file_location(_MODULE_NAME, EXTENSION)
    assert spec is not None and spec.loader is not None
    try:
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    except ImportError as error:
        raise NativeUnavailableError(f"{EXTENSION} cannot be loaded: {error}") from None
    if module.source_sha256 != _source_sha256():
        raise NativeUnavailableError(f"{EXTENSION.name} is older than {SOURCE.name}; `make setup` renews it")
    return module


def build() -> None:
    """Compile the extension. Raises NativeUnavailableError when there is no compiler or it fails."""
    compiler = os.environ.get("CXX") or next(filter(shutil.which, _COMPILERS), None)
    if compiler is None:
        raise NativeUnavailableError(f"no C++ compiler ({', '.join(_COMPILERS)}) was found; CXX can name one")
    temporary = EXTENSION.with_name(f"{EXTENSION.name}.{os.getpid()}.tmp")
    includes = [f"-I{folder}" for folder in (sysconfig.get_paths()["include"], _pybind11_headers())]
    command = [*compiler.split(), *_FLAGS, f'-DSOURCE_SHA256="{_source_sha256()}"', *includes, str(SOURCE),
               "-o", str(temporary)]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        raise NativeUnavailableError(f"{compiler} cannot be run: {error}") from None
    if done.returncode != 0:
        temporary.unlink(missing_ok=True)
        message = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr.strip()[-300:])
        raise NativeUnavailableError(f"{compiler} failed: {message}")
    os.replace(temporary, EXTENSION)


def main() -> None:
    """Build if need be, and say what came of it."""
    try:
        load_extension()
        return
    except NativeUnavailableError:
        pass
    try:
        build()
        load_extension()
        print(f"native encoder: compiled {EXTENSION.name}")
    except NativeUnavailableError as error:
        print(f"native encoder: not available, slower ones with the same ids are used: {error}")


def _source_sha256() -> str:
    return hashlib.sha256(SOURCE.read_bytes()).hexdigest()


def _pybind11_headers() -> str:
    try:
        import pybind11
    except ImportError:
        raise NativeUnavailableError("pybind11 is not installed; `make setup` installs it") from None
    return pybind11.get_include()


if __name__ == "__main__":
    sys.exit(main())
