"""Wrong settings files, by the thousand: a valid plan, or one message that names the place; never a traceback.

`MUTANTS=500` sets how many are tried of every file (10 otherwise), other ones each time; what came of thousands stands
in benchmarks/robustness.md.
"""

import contextlib
import io
import json
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megatron_ext import train
from megatron_ext.config import RunConfig
from megatron_ext.settings_file import read_layers
from megatron_ext.settings_types import slot_at
from megatron_ext.study.config import StudyConfig
from tests.cpu.tiny import make_tokenized
from tests.unit.mutants import mutants
from tools import run_study

NUM_MUTANTS = int(os.environ.get("MUTANTS", "10"))
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
    if neutral := values.get("validation", {}).get("neutral"):
        values["validation"]["neutral"] = str((path.parent / neutral).absolute())
    return values


def planned(path, folder):
    """(exit code, what was told) of `run_study --dry-run`."""
    told = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(told):
        code = run_study.main([str(path), "--work", str(folder / "work"), "--dry-run"])
    return code, told.getvalue()


def is_schema_key(keys, cls):
    """Whether a key's name is given by the settings, and not by the user (names of conditions, subsets, scores)."""
    return slot_at(cls, keys[:-1]).section is not None and isinstance(keys[-1], str)


@pytest.fixture(scope="module", autouse=True)
def without_network():
    os.environ["HF_HUB_OFFLINE"] = "1"
    yield
    del os.environ["HF_HUB_OFFLINE"]


def check(mutant, code, told, cls):
    """A wrong file is planned as what it says, or refused in words that name the place."""
    assert code in (0, 2), told
    assert "Traceback" not in told
    if code == 2:
        assert told.startswith("error: ")
        assert any(name in told for name in mutant.names), (mutant.kind, mutant.keys, mutant.new_key, told)
    must_be_refused = mutant.kind == "infinity" or (mutant.kind == "duplicate" and isinstance(mutant.new_key, str))
    if mutant.kind == "misspell" and mutant.new_key != mutant.keys[-1] and is_schema_key(mutant.keys, cls):
        must_be_refused = True
    assert code == 2 or not must_be_refused, (mutant.kind, mutant.keys, mutant.new_key)


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
        check(mutant, code, told, StudyConfig)

    holds()


BASES = sorted(Path("examples/base").glob("*.yaml"))


@pytest.fixture(scope="module")
def run_places(tmp_path_factory):
    """A model folder and data that every base file can be checked with, and the arguments that name them."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text(json.dumps({
        "architectures": ["LlamaForCausalLM"], "vocab_size": 128, "hidden_size": 64, "intermediate_size": 96,
        "num_hidden_layers": 4, "num_attention_heads": 4, "max_position_embeddings": 8192}))
    return ["output=" + str(folder / "out"), f"model.hf_folder={folder / 'model'}", "data.sources.a.fill=true",
            f"data.sources.a.path={make_tokenized(folder / 'a', 0)}", "data.sources.a.max_epochs=1e9"]


@pytest.mark.parametrize("path", BASES, ids=lambda path: path.stem)
def test_a_wrong_run_file_is_checked_or_refused_by_name(path, run_places, tmp_path_factory):
    values, folder = read_layers(path), tmp_path_factory.mktemp("mutants")
    values["logging"] = {"interval_iters": 10}
    values["model"]["layer_implementation"] = "local"  # no Transformer Engine is needed to try the others
    sizes = values["parallel"]
    layout = sizes.get("tensor_model_parallel_size", 1) * sizes.get("pipeline_model_parallel_size", 1)
    file = folder / "run.yaml"

    @OF_EVERY_FILE
    @given(st.data())
    def holds(data):
        mutant = data.draw(mutants(values))
        file.write_text(mutant.text, encoding="utf-8")
        told = io.StringIO()
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(told):
            code = train.main(["--config", str(file), "--dry-run", "--num-processes", str(layout), *run_places])
        check(mutant, code, told.getvalue(), RunConfig)

    holds()
