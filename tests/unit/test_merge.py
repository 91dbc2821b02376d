"""Merging checkpoints: what is refused, and what the result says of its parents."""

import json
import shutil
import sys
from unittest.mock import patch

import pytest
from safetensors.torch import load_file, save_file

from megatron_ext.artifacts import delete_artifact, produce
from megatron_ext.errors import UserError
from megatron_ext.lineage import Places, verify
from megatron_ext.model import merge
from megatron_ext.model.hf_export import write_hf_folder
from megatron_ext.model.hf_import import write_megatron_checkpoint
from megatron_ext.model.merge import merge_checkpoints
from megatron_ext.model.settings import MergeSettings
from megatron_ext.settings import validate
from tests.hf_models import make_hf_model
from tools.merge_checkpoints import main

CHANGE = {"iteration": 3, "key": "num_processes", "before": 1, "now": 2}


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    folder = tmp_path_factory.mktemp("merge")

    def checkpoint(name, iteration, dtype="keep", tokenizer="{}", **changes):
        model = make_hf_model(folder / f"model-{name}", **changes)
        (model / "tokenizer.json").write_text(tokenizer)
        produce(folder / name, kind="checkpoint", settings={"iteration": iteration}, inputs={"model": model},
                make=lambda target: {**write_megatron_checkpoint(model, target, dtype), "iteration": iteration,
                                     "changes": [CHANGE] if iteration == 4 else []})

    checkpoint("one", 2)
    checkpoint("two", 4, initializer_range=0.2)
    checkpoint("half", 6, dtype="bfloat16")
    checkpoint("wider", 2, intermediate_size=96)
    checkpoint("other", 2, tokenizer="{ }")
    checkpoint("damaged", 2, initializer_range=0.4)
    (folder / "damaged" / "__0_0.distcp").unlink()
    return folder


def settings(lab, *names, **more):
    return validate(MergeSettings, {"checkpoints": [str(lab / name) for name in names], **more}, "merge")


def test_the_result_names_its_parents_and_what_was_changed_on_their_ways(lab, tmp_path):
    merged = merge_checkpoints(settings(lab, "one", "two"), tmp_path / "merged")
    assert merged.counts["iterations"] == [2, 4]
    assert merged.counts["iteration"] == 4
    assert merged.counts["changes"] == [CHANGE]
    result = verify(merged, Places([lab, tmp_path], [lab / "model-one", lab / "model-two"]))
    assert result.problems == []
    assert result.unchecked == []
    assert [step.artifact.path.name for step in result.steps] == ["merged", "one", "two"]
    with pytest.raises(UserError, match=r"weights: made with None, asked for \[1.0, 2.0\]"):
        merge_checkpoints(settings(lab, "one", "two", weights=[1, 2]), tmp_path / "merged")


def test_types_are_mixed_only_when_one_is_chosen(lab, tmp_path):
    with pytest.raises(UserError, match=r"of several types .*float32.*bfloat16\); choose one with dtype"):
        merge_checkpoints(settings(lab, "one", "half"), tmp_path / "merged")
    merged = merge_checkpoints(settings(lab, "one", "half", dtype="float32", restart=True), tmp_path / "merged")
    (tmp_path / "exported").mkdir()
    write_hf_folder(merged.path, tmp_path / "exported")
    original = load_file(lab / "model-one" / "model.safetensors")
    for name, value in load_file(tmp_path / "exported" / "model.safetensors").items():
        expected = (original[name].double() + original[name].bfloat16().double()) / 2
        assert value.equal(expected.float()), name


@pytest.mark.parametrize("weights", [None, [0.3, 0.7]])
def test_equal_parents_give_their_bytes_negative_zeros_too(lab, tmp_path, weights):
    model = tmp_path / "model"
    shutil.copytree(lab / "model-one", model)
    tensors = load_file(model / "model.safetensors")
    for tensor in tensors.values():
        tensor.view(-1)[:3] = -0.0
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    parents = [tmp_path / "first", tmp_path / "second"]
    for parent in parents:
        produce(parent, kind="checkpoint", settings={}, inputs={},
                make=lambda folder: write_megatron_checkpoint(model, folder))
    merged = merge_checkpoints(settings(tmp_path, "first", "second", weights=weights), tmp_path / "merged")
    assert (merged.path / "__0_0.distcp").read_bytes() == (parents[0] / "__0_0.distcp").read_bytes()


def test_a_run_may_delete_a_parent_while_it_is_read(lab, tmp_path, monkeypatch):
    copy = tmp_path / "copy"
    produce(copy, kind="checkpoint", settings={"copy": 1}, inputs={},
            make=lambda folder: write_megatron_checkpoint(lab / "model-one", folder))
    write = merge.write_checkpoint

    def delete_and_write(*arguments):
        delete_artifact(copy)
        write(*arguments)

    monkeypatch.setattr(merge, "write_checkpoint", delete_and_write)
    given = validate(MergeSettings, {"checkpoints": [str(copy), str(lab / "one")]}, "merge")
    merged = merge_checkpoints(given, tmp_path / "merged")
    assert (merged.path / "__0_0.distcp").read_bytes() == (lab / "one" / "__0_0.distcp").read_bytes()


BROKEN = {
    "another architecture": ([["one", "wider"]], {},
                             "wider has another architecture (ffn_hidden_size 96, not 80) than"),
    "another tokenizer": ([["one", "other"]], {}, "other has another tokenizer.json than"),
    "none": ([["one", "absent"]], {}, "absent"),
    "a damaged one": ([["one", "damaged"]], {}, "damaged/__0_0.distcp is missing"),
    "no checkpoint": ([["one", "model-one"]], {}, "model-one is not a finished artifact"),
    "one": ([["one"]], {}, "at least 2"),
    "weights": ([["one", "two"]], {"weights": [1]}, "weights has 1 numbers for 2 checkpoints"),
    "no weight": ([["one", "two"]], {"weights": [0, 0]}, "weights are all 0"),
    "one twice": ([["one", "two", "./one"]], {}, "one is there twice; give it a weight instead"),
    "negative": ([["one", "two"]], {"weights": [1, -1]}, "weights"),
}


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("dry", [[], ["--dry-run"]], ids=["run", "dry run"])
def test_bad_input_is_refused_in_a_line(lab, tmp_path, capsys, name, dry):
    [parents], more, told = BROKEN[name]
    given = json.dumps([str(lab / parent) for parent in parents])
    arguments = ["merge", "--output", str(tmp_path / "merged"), f"checkpoints={given}", *dry,
                 *(f"{key}={value}" for key, value in more.items())]
    with patch.object(sys, "argv", arguments):
        assert main() == 2
    said = capsys.readouterr().err
    assert told in said
    assert said.count("\n") == 1
    assert not (tmp_path / "merged").exists()
