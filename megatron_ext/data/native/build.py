"""Compile the native encoder in place; `make setup` calls this.

    python -m megatron_ext.data.native.build

Nothing happens when these sources are compiled already. Where it cannot be built, this says why and succeeds all
the same: every tokenizer has an encoder that needs no compiler.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import ModuleType

FOLDER = Path(__file__).parent
SOURCES = tuple(FOLDER / name for name in ("sentencepiece_bpe.cpp", "utf8.h", "word_cache.h"))
# No -march: the result must run on every node of a cluster that shares the checkout.
_FLAGS = ("-O3", "-std=c++17", "-Wall", "-Wextra", "-fPIC", "-shared", "-fvisibility=hidden")
_COMPILERS = ("c++", "g++", "clang++")
_MODULE = "_sentencepiece_bpe"


class NativeUnavailableError(Exception):
    """The extension cannot be built or used here; the message says why."""


def extension_path() -> Path:
    """The compiled file of these sources and this Python."""
    digest = hashlib.sha256(b"".join(source.read_bytes() for source in SOURCES)).hexdigest()[:12]
    return FOLDER / f"{_MODULE}-{digest}{sysconfig.get_config_var('EXT_SUFFIX')}"


def load_extension() -> ModuleType:
    """The compiled extension. Raises NativeUnavailableError when it is missing or broken."""
    path = extension_path()
    if not path.is_file():
        raise NativeUnavailableError("it is not compiled; `make setup` does that where there is a C++ compiler")
    spec = importlib.util.spec_from_file_location(_MODULE, path)
    assert spec is not None and spec.loader is not None
    try:
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    except ImportError as error:
        raise NativeUnavailableError(f"{path} cannot be loaded: {error}") from None
    return module


def build() -> None:
    """Compile the extension. Raises NativeUnavailableError when there is no compiler or it fails."""
    compiler = os.environ.get("CXX") or next(filter(shutil.which, _COMPILERS), None)
    if compiler is None:
        raise NativeUnavailableError(f"no C++ compiler ({', '.join(_COMPILERS)}) was found; CXX can name one")
    path = extension_path()
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    includes = [f"-I{folder}" for folder in (sysconfig.get_paths()["include"], _pybind11_headers())]
    command = [*compiler.split(), *_FLAGS, *includes, str(SOURCES[0]), "-o", str(temporary)]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        raise NativeUnavailableError(f"{compiler} cannot be run: {error}") from None
    if done.returncode != 0:
        temporary.unlink(missing_ok=True)
        message = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr.strip()[-300:])
        raise NativeUnavailableError(f"{compiler} failed: {message}")
    for older in FOLDER.glob(f"{_MODULE}-*{sysconfig.get_config_var('EXT_SUFFIX')}"):
        older.unlink(missing_ok=True)
    os.replace(temporary, path)


def main() -> None:
    """Build if need be, and say what came of it."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    try:
        load_extension()
        return
    except NativeUnavailableError:
        pass
    try:
        build()
        load_extension()
        print(f"native encoder: compiled {extension_path().name}")
    except NativeUnavailableError as error:
        print(f"native encoder: not available, slower ones with the same ids are used: {error}")


def _pybind11_headers() -> str:
    try:
        import pybind11
    except ImportError:
        raise NativeUnavailableError("pybind11 is not installed; `make setup` installs it") from None
    return pybind11.get_include()


if __name__ == "__main__":
    sys.exit(main())
