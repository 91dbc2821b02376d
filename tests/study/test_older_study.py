"""A study that the first version of the format made opens, verifies, goes on and is reported: nothing is made again.

Its archive holds what commit a975e6c wrote for `study_values` of then, without logs and without the checkpoint before
the last of each run (old ones may be deleted for space).
"""

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import yaml

from megatron_ext.artifacts import Artifact
from megatron_ext.errors import UserError
from megatron_ext.manifest import is_current
from tests.study.test_whole_study import CORPUS

pytestmark = pytest.mark.slow
ARCHIVE = Path(__file__).parents[1] / "golden" / "study_v1.tar.xz"
REMADE = ("overlap/", "validate/", "report/", "compare/held_out")


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("older")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    values = yaml.safe_load((folder / "study.yaml").read_text())
    values["base_model"] = values["rewriter"]["model"] = str(folder / "tiny")
    (folder / "study.yaml").write_text(yaml.safe_dump(values))
    return folder


def call(study, *command):
    environment = {**os.environ, "POETA_DATA": "", "XDG_CACHE_HOME": str(study / "cache")}
    return subprocess.run([sys.executable, "-m", *map(str, command)], capture_output=True, text=True, env=environment)


def states_of(plan):
    """Name of a node -> its line in a plan."""
    lines = [line for line in plan.splitlines() if " GPU-h " in line and line[:1] != " "]
    return {line.split()[0]: line for line in lines}


def one(study, pattern):
    (found,) = (study / "work").glob(pattern)
    return found


def test_its_artifacts_open_and_verify(study):
    for manifest in (study / "work").rglob("manifest.json"):
        artifact = Artifact.open(manifest.parent)
        assert not is_current(artifact.manifest)
        assert artifact.verify() == []
    done = call(study, "tools.verify_artifact", one(study, "report/*"), "--raw", CORPUS)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_changed_byte_of_it_is_noticed(study):
    tokens = one(study, "tokenize/low-*") / "train.bin"
    intact = tokens.read_bytes()
    try:
        tokens.write_bytes(bytes([intact[0] ^ 1]) + intact[1:])
        with pytest.raises(UserError, match=f"{tokens} has other bytes than when it was made"):
            Artifact.open(tokens.parent).check()  # opening sees it already where this machine had read the bytes
    finally:
        tokens.write_bytes(intact)


def test_it_goes_on_and_is_reported_and_nothing_is_made_again(study):
    before = {path: path.stat().st_mtime_ns for path in (study / "work").rglob("manifest.json")}
    planned = call(study, "tools.run_study", study / "study.yaml", "--work", study / "work", "--dry-run")
    assert planned.returncode == 0, planned.stdout + planned.stderr
    states = states_of(planned.stdout)
    assert all(("done" in line) != name.startswith(REMADE) for name, line in states.items()), planned.stdout
    assert "made again" not in planned.stdout
    done = call(study, "tools.run_study", study / "study.yaml", "--work", study / "work")
    assert done.returncode == 0, done.stdout + done.stderr
    assert {path: path.stat().st_mtime_ns for path in before} == before
    new = {path.relative_to(study / "work").parts[0] for path in (study / "work").rglob("manifest.json")} - {"report"}
    assert new == {path.relative_to(study / "work").parts[0] for path in before} - {"report"} | {"validate", "overlap"}
    losses = json.loads((one(study, "validate/low/seed0-*") / "losses.json").read_text())
    assert losses.keys() == {"high", "low"}
    assert len(list((study / "work").glob("report/*"))) == 2


def test_another_condition_joins_it(study):
    """Only what is new runs: its run, export, evaluation, measurement and the comparison."""
    done = call(study, "tools.run_study", study / "study.yaml", "--work", study / "work", "--dry-run",
                "conditions.both.sources={low: {fill: true}, high: {fraction: 0.5}}")
    assert done.returncode == 0, done.stdout + done.stderr
    states = states_of(done.stdout)
    of_the_new = {"run/both/seed0", *(f"{stage}/both/seed0{more}" for stage in ("export", "evaluate", "validate")
                                      for more in ("", "/iter_*"))}
    assert {name for name, line in states.items() if "not started" in line} == of_the_new | {"report/tiny"}
