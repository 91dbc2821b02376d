"""The README's file tree, commands and configurations exist."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def tree_paths():
    block = README.split("## Where things are")[1].split("```")[1]
    parents = {0: Path()}
    for line in filter(None, block.splitlines()):
        indent = len(line) - len(line.lstrip())
        if indent > 4 or line.startswith(" " * 20):
            continue
        names = [word for word in line.split("  ")[0 if not indent else indent // 2].split() if word]
        for name in names:
            yield parents[indent] / name
        parents[indent + 2] = parents[indent] / names[0]


@pytest.mark.parametrize("path", sorted(set(tree_paths())), ids=str)
def test_every_path_of_the_tree_exists(path):
    assert (ROOT / path).exists()


def test_every_top_level_folder_is_in_the_tree():
    tracked = subprocess.run(["git", "-C", str(ROOT), "ls-files"], capture_output=True, text=True, check=True).stdout
    folders = {line.split("/")[0] for line in tracked.splitlines() if "/" in line and not line.startswith(".")}
    assert folders == {str(path) for path in tree_paths() if len(path.parts) == 1 and (ROOT / path).is_dir()}


@pytest.mark.parametrize("module", sorted(set(re.findall(r"-m ((?:tools|megatron_ext|evaluation)\.\w+)", README))))
def test_every_program_named_in_the_readme_has_help(module):
    done = subprocess.run([sys.executable, "-m", module, "--help"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert any(word in done.stdout for word in ("settings", "key=value", "FILE"))


def test_every_file_named_in_the_readme_exists():
    for path in re.findall(r"\b(?:examples|slurm)/[\w./]+\w\.(?:yaml|env|sbatch)", README):
        assert (ROOT / path).exists(), path
