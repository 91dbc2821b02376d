"""Imports go down only: a package knows those below it, and no module needs itself through others."""

import ast
import re
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[2]
LAYERS = (
    "megatron_ext",  # settings, artifacts, files: what every stage rests on
    "megatron_ext.data.native",
    "megatron_ext.data",
    "megatron_ext.data.selection",
    "megatron_ext.data.rewriting",
    "megatron_ext.model",
    "megatron_ext.training",
    "evaluation.suites",
    "evaluation.poeta",
    "evaluation",
    "evaluation.report",
    "megatron_ext.study",
    "tools",
    "benchmarks",
)
PROGRAMS = ("megatron_ext.train", "megatron_ext.validate")
"""Programs that stand beside the packages they start."""


def layer_of(module):
    if module in PROGRAMS:
        return LAYERS.index("tools")
    return max((number for number, name in enumerate(LAYERS) if f"{module}.".startswith(f"{name}.")),
               key=lambda number: len(LAYERS[number]))


@cache
def modules():
    """Name -> file."""
    found = {}
    for top in ("megatron_ext", "evaluation", "tools", "benchmarks"):
        for path in sorted((ROOT / top).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports_of(module):
    """(module that is imported, whether for its types alone) of every import, those inside functions too."""
    tree = ast.parse(modules()[module].read_text(encoding="utf-8"))
    for_types = {inner for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
                 for inner in ast.walk(node)}
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        yield from ((name, node in for_types) for name in names if name in modules() and name != module)


def test_a_package_imports_from_those_below_it_alone():
    upwards = [f"{module} imports {name}" for module in modules() for name, _ in imports_of(module)
               if layer_of(name) > layer_of(module)]
    assert upwards == []


def test_no_module_needs_itself():
    TopologicalSorter({module: {name for name, for_types in imports_of(module) if not for_types}
                       for module in modules()}).prepare()


def test_the_design_document_draws_the_same_layers():
    rows = re.findall(r"^\| `([\w.]+)` \|", (ROOT / "docs" / "design.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert tuple(rows) == LAYERS
