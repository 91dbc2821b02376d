"""All programs under one name: megatron-ext PROGRAM …, which is python -m tools PROGRAM …

A program is started as `python -m` starts it, from any working folder. With nothing to start, all are listed.
"""

from __future__ import annotations

import ast
import difflib
import os
import sys
from pathlib import Path

from megatron_ext.errors import UserError, exit_on_user_error

ROOT = Path(__file__).resolve().parents[1]
"""What holds the packages: the checkout, or site-packages."""
PACKAGES = ("tools", "evaluation", "megatron_ext")
_MARK = 'if __name__ == "__main__":'


def programs() -> dict[str, str]:
    """Name as it is typed (`run-study`) -> module (`tools.run_study`) of every module that can be started."""
    files = [file for package in PACKAGES for file in sorted((ROOT / package).rglob("*.py"))
             if file != Path(__file__).resolve() and _MARK in file.read_text(encoding="utf-8")]
    modules = [".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__main__") for file in files]
    return {module.partition(".")[2].replace("_", "-").replace(".", "-"): module for module in modules}


def summary(module: str) -> str:
    """What a program is for: the first line of its docstring, without its usage."""
    file = ROOT / module.replace(".", "/")
    text = (file / "__main__.py" if file.is_dir() else file.with_suffix(".py")).read_text(encoding="utf-8")
    first = (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0]
    return first.partition(": python -m")[0].rstrip(".:")


@exit_on_user_error
def main() -> int:
    """Become the program that is named; exit code 2 where none is."""
    known = programs()
    name, *arguments = sys.argv[1:] or [""]
    if name in ("", "-h", "--help"):
        print("usage: megatron-ext PROGRAM [--help] …\n", *(f"  {one:18}  {summary(known[one])}" for one in known),
              sep="\n", file=sys.stdout if name else sys.stderr)
        return 0 if name else 2
    module = known.get(name.replace("_", "-"))
    if module is None:
        near = difflib.get_close_matches(name, known, n=3)
        raise UserError(f"there is no program {name!r}" + (f"; near it: {', '.join(near)}" if near else "")
                        + "; megatron-ext --help lists all")
    sys.stdout.flush()
    os.execve(sys.executable, [sys.executable, "-m", module, *arguments], _environment())


def _environment() -> dict[str, str]:
    """The packages are found where these are, here and in all children, also where the working folder has a `tools`."""
    environment = {**os.environ, "PYTHONSAFEPATH": "1"}
    if (ROOT / "pyproject.toml").exists():  # of site-packages another environment's Python must not know
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment["PYTHONPATH"] = os.pathsep.join(paths)
    return environment


if __name__ == "__main__":
    sys.exit(main())
