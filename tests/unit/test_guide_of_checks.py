"""The worked example of docs/checks.md, applied to a copy of the source and run as the guide says."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "checks.md").read_text(encoding="utf-8")
MOST_LINES = 60


def block(language):
    [text] = re.findall(rf"```{language}\n(.*?)```", GUIDE, re.DOTALL)
    return text


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """The source as the guide leaves it."""
    folder = tmp_path_factory.mktemp("copy")
    for package in ("megatron_ext", "tools"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run(["git", "apply", "-"], cwd=folder, input=block("diff"), text=True, check=True)
    return folder


def judged(source, folder, *more):
    """What the guide's command makes of the guide's pairs, by the program of a source tree."""
    (folder / "pairs.jsonl").write_text(block("jsonl"), encoding="utf-8")
    [arguments] = re.findall(r"^python (-m tools\.check_rewrites .*)$", GUIDE, re.MULTILINE)
    done = subprocess.run([sys.executable, *arguments.split(), *more], cwd=folder, capture_output=True, text=True,
                          env=os.environ | {"PYTHONPATH": str(source)})
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in (folder / "judged.jsonl").read_text(encoding="utf-8").splitlines()]


def test_the_example_is_short():
    assert len(block("diff").splitlines()) <= MOST_LINES


def test_the_check_rejects_what_it_is_for_and_nothing_else(copy, tmp_path):
    good, bad = judged(copy, tmp_path)
    assert (good["accepted"], good["reasons"]) == (True, [])
    assert (bad["accepted"], bad["reasons"]) == (False, ["shouting"])
    assert good["shouted_fraction"] == 0 < 0.2 < bad["shouted_fraction"]


def test_without_the_check_the_bad_one_passes(tmp_path):
    assert [row["accepted"] for row in judged(ROOT, tmp_path)] == [True, True]


def test_thresholds_of_before_leave_it_off(copy, tmp_path):
    before = ROOT / "megatron_ext" / "data" / "rewriting" / "languages" / "pt" / "thresholds.yaml"
    assert [row["accepted"] for row in judged(copy, tmp_path, "--thresholds", str(before))] == [True, True]
