"""What killed writers leave is never published, and stages that were killed end with the bits of undisturbed ones."""

import gzip
import json
import multiprocessing
import os
import random
import signal

import pytest

from megatron_ext.artifacts import Artifact, partial_folder
from megatron_ext.data import batches
from megatron_ext.data.model_folder import ModelSettings, fetch_model
from megatron_ext.data.selection import laying
from megatron_ext.files import is_temporary
from tests.unit.selecting import ROWS, select, write_parquet_shards
from tests.unit.test_tokenization import tokenize, write_jsonl
from tests.unit.tiny_chat_model import make_tiny_chat_model
from tests.unit.tokenizer_folders import TEXTS, byte_level_tokenizer

fork = multiprocessing.get_context("fork")
NUM_KILLS = 6


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return make_tiny_chat_model(tmp_path_factory.mktemp("model") / "source")


@pytest.fixture(scope="module")
def old_source(tmp_path_factory):
    """A model in two files of the old format."""
    import torch
    from safetensors.torch import load_file

    folder = make_tiny_chat_model(tmp_path_factory.mktemp("old") / "source")
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = {name: f"pytorch_model-{1 + number % 2:05}-of-00002.bin" for number, name in enumerate(weights)}
    for file in set(names.values()):
        torch.save({name: weights[name] for name in weights if names[name] == file}, folder / file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    return folder


@pytest.fixture(scope="module")
def stages(tmp_path_factory, source, old_source):
    folder = tmp_path_factory.mktemp("stages")
    tokenizer = byte_level_tokenizer(folder / "tokenizer")
    corpus, compressed = write_parquet_shards(folder / "corpus", ROWS, 3), folder / "c.jsonl.gz"
    compressed.write_bytes(gzip.compress("\n".join(map(json.dumps, ROWS)).encode()))
    for number in range(4):
        write_jsonl(folder / "texts" / f"{number}.jsonl",
                    [{"id": f"{number}-{i}", "text": TEXTS[i % 4] * 8} for i in range(50)])
    return {
        "fetch": lambda output: fetch_model(ModelSettings(model=str(source)), output),
        "fetch old weights": lambda output: fetch_model(ModelSettings(model=str(old_source)), output),
        "select": lambda output: select(corpus, tokenizer, output, budget_tokens=3_000),
        "select within a file": lambda output: select(compressed, tokenizer, output, budget_tokens=3_000),
        "tokenize": lambda output: tokenize(folder / "texts", tokenizer, output, valid_fraction=0.2),
    }


def _run_and_die(stage, output, num_files):
    """Run a stage that is killed just before so many files get their names."""
    replace, left = os.replace, num_files

    def count(source, target):
        nonlocal left
        if str(source).startswith(str(partial_folder(output))) and os.path.isfile(source):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)

    os.replace = count
    stage(output)


@pytest.mark.parametrize("name", ["fetch", "fetch old weights", "select", "select within a file", "tokenize"])
def test_killed_before_files_get_their_names(stages, name, tmp_path, monkeypatch):
    if name == "select within a file":
        monkeypatch.setattr(batches, "BATCH_ROWS", 16)
        monkeypatch.setattr(laying, "RUN_BYTES", 4_000)
    undisturbed = stages[name](tmp_path / "undisturbed")
    chance = random.Random(name)
    num_left = 0
    for _ in range(NUM_KILLS):
        process = fork.Process(target=_run_and_die, args=(stages[name], tmp_path / "out", chance.randint(1, 6)))
        process.start()
        process.join(60)
        partial = partial_folder(tmp_path / "out")
        num_left += sum(is_temporary(file.name) for file in partial.rglob("*"))
    resumed = stages[name](tmp_path / "out")
    assert num_left > 0
    assert resumed.content_hash == undisturbed.content_hash
    assert resumed.manifest["files"].keys() == undisturbed.manifest["files"].keys()
    assert not any(is_temporary(file.name) for file in tmp_path.rglob("*"))
    assert Artifact.open(tmp_path / "out").verify() == []


def test_a_fetched_model_does_not_change_with_its_source(source, tmp_path):
    artifact = fetch_model(ModelSettings(model=str(source)), tmp_path / "model")
    for file in source.iterdir():
        assert not (artifact.path / file.name).exists() or not os.path.samefile(file, artifact.path / file.name)
