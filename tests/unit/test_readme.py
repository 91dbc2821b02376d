"""What the README and the guides name exists: file tree, commands, configurations, words of a verdict."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from evaluation import verdicts
from evaluation.measures import BITS_PER_BYTE

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
GUIDES = {path.name: path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md"))}
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
TEXTS = "\n".join([README, CONTRIBUTING, *GUIDES.values()])


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


@pytest.mark.parametrize("module", sorted(set(re.findall(r"-m ((?:tools|megatron_ext|evaluation)\.\w+)", TEXTS))))
def test_every_program_that_is_named_has_help(module):
    done = subprocess.run([sys.executable, "-m", module, "--help"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert any(word in done.stdout for word in ("settings", "key=value", "positional arguments"))


def test_every_file_that_is_named_exists():
    folders = "benchmarks|docs|evaluation|examples|megatron_ext|slurm|tests|tools"
    for path in re.findall(rf"(?<![\w./])(?:{folders})/[\w./]+\w\.\w+", TEXTS):
        assert (ROOT / path).exists(), path


def test_every_target_of_make_that_is_named_exists():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert set(re.findall(r"\bmake ((?!a\b|one\b)[a-z][\w-]*)(?=[`\s]*[`#\n(]| [A-Z]+=)", TEXTS)) <= targets


def test_every_guide_is_named_in_the_readme():
    assert [name for name in GUIDES if f"docs/{name}" not in README] == []


def test_the_guide_quotes_verdicts_as_they_are_told():
    estimate = {"value": -0.0213, "low": -0.0317, "high": -0.0103, "minimum_detectable": 0.015}
    told = verdicts.held_out_verdict("high", "low", estimate, 1e-4, text="neutral", num_items=66, trained_on_by=[],
                                     one_seed=True, measure=BITS_PER_BYTE)
    quoted = " ".join(line.removeprefix("> ") for line in GUIDES["verdicts.md"].splitlines() if line.startswith("> "))
    assert told == quoted
    assert f"at least {verdicts.MIN_ITEMS} of them" in GUIDES["verdicts.md"]
    assert f"at most {verdicts.ALPHA}" in GUIDES["verdicts.md"]
