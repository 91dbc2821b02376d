"""Wrong settings files, by the thousand: a valid plan, or one message that names the place; never a traceback.

`MUTANTS=5000` sets how many are tried of every file.
"""

import contextlib
import io
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megatron_ext.settings_file import read_layers
from megatron_ext.settings_types import slot_at
from megatron_ext.study.config import StudyConfig
from tests.unit.mutants import mutants
from tools import run_study

NUM_MUTANTS = int(os.environ.get("MUTANTS", "12"))
STUDIES = sorted([*Path("examples/studies").glob("*.yaml"), Path("examples/quickstart/study.yaml")])
OF_EVERY_FILE = settings(max_examples=NUM_MUTANTS, deadline=None, derandomize="MUTANTS" not in os.environ,
                         database=None, suppress_health_check=list(HealthCheck))


def good_values(path):
    """The values of a study file with all its layers, with paths that hold wherever it lies."""
    values = read_layers(path)
    values.setdefault("name", "a study")
    values.setdefault("conditions", {"low": {"sources": {"low": {"fill": True, "max_epochs": 4.1}}},
                                     "high": {"sources": {"high": {"fill": True, "max_epochs": 4.1}}}})
    values["run_file"] = str((path.parent / values["run_file"]).absolute())
    return values


def planned(path, folder):
    """(exit code, what was told) of `run_study --dry-run`."""
    told = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(told):
        code = run_study.main([str(path), "--work", str(folder / "work"), "--dry-run"])
    return code, told.getvalue()


def is_schema_key(keys):
    """Whether a key's name is given by the settings, and not by the user (names of conditions, subsets, scores)."""
    return slot_at(StudyConfig, keys[:-1]).section is not None and isinstance(keys[-1], str)


@pytest.fixture(scope="module", autouse=True)
def without_network():
    os.environ["HF_HUB_OFFLINE"] = "1"
    yield
    del os.environ["HF_HUB_OFFLINE"]


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_a_wrong_study_file_is_planned_or_refused_by_name(path, tmp_path_factory):
    values, folder = good_values(path), tmp_path_factory.mktemp("mutants")
    file = folder / "study.yaml"

    @OF_EVERY_FILE
    @given(st.data())
    def holds(data):
        mutant = data.draw(mutants(values))
        file.write_text(mutant.text, encoding="utf-8")
        code, told = planned(file, folder)
        assert code in (0, 2), told
        assert "Traceback" not in told
        if code == 2:
            assert told.startswith("error: ")
            assert any(name in told for name in mutant.names), (mutant.kind, mutant.keys, mutant.new_key, told)
        if mutant.kind in ("misspell", "duplicate") and mutant.new_key not in (mutant.keys[-1], "base"):
            assert code == 2 or not is_schema_key(mutant.keys), (mutant.keys, mutant.new_key)
        if mutant.kind == "duplicate" and isinstance(mutant.new_key, str):
            assert code == 2

    holds()
