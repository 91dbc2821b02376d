"""A run reads what was encoded as its model is: tokenizers are compared, ids by their use, splits by what they hold."""

import hashlib
import json

import numpy as np
import pytest

from megatron_ext.artifacts import produce
from megatron_ext.config import RunConfig
from megatron_ext.data.indexed import bin_path, idx_path, write_index
from megatron_ext.errors import UserError
from megatron_ext.settings import overlay, validate
from megatron_ext.training.preflight import check_run, planned_problems

NUM_ROWS = 128
CONFIG = {"architectures": ["LlamaForCausalLM"], "vocab_size": NUM_ROWS, "hidden_size": 64, "intermediate_size": 96,
          "num_hidden_layers": 4, "num_attention_heads": 4, "max_position_embeddings": 128}
VOCABULARY = '{"model": {"vocab": {"a": 0}}}'
SHA256 = hashlib.sha256(VOCABULARY.encode()).hexdigest()


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "model" / "tokenizer.json").write_text(VOCABULARY)
    return tmp_path


def tokenized(folder, sha256=SHA256, eod=1, vocab_size=NUM_ROWS, highest_id=90, tokens=(256, 64)):
    """A tokenized artifact with so many tokens in its two splits."""
    def make(target):
        counts = {"vocab_size": vocab_size, "eod_token_id": eod, "tokenizer_sha256": sha256, "encoder": "tokenizers"}
        for split, number in zip(("train", "valid"), tokens, strict=True):
            ids = np.arange(number, dtype=np.uint16) % (highest_id + 1)
            if number:
                ids[-1] = highest_id
            bin_path(target / split).write_bytes(ids.tobytes())
            write_index(idx_path(target / split), np.array([number] if number else [], dtype=np.int64),
                        np.dtype(np.uint16))
            counts[split] = {"documents": int(number > 0), "tokens": number, "bytes": 2 * number}
        return counts

    return produce(folder, kind="tokenized", settings={"name": folder.name}, inputs={}, make=make).path


def run(folder, sources, held_out=(), **changes):
    values = {
        "output": str(folder / "run"), "model": {"hf_folder": str(folder / "model")},
        "data": {"seq_length": 32, "sources": {place.name: {"path": str(place), "fill": True, "max_epochs": 100}
                                               for place in sources}},
        "train": {"budget_tokens": 4 * 8 * 32, "global_batch_size": 8},
        "validation": {"sources": {place.name: str(place) for place in held_out}}}
    return validate(RunConfig, overlay(values, changes), "test")


def refused(config):
    with pytest.raises(UserError) as refusal:
        check_run(config, 1)
    return str(refusal.value)


def test_sources_of_the_models_tokenizer_may_run(folder):
    sources = [tokenized(folder / "a"), tokenized(folder / "b")]
    check_run(run(folder, sources, sources), 1)


def test_a_source_of_another_tokenizer_is_refused_though_its_ids_fit(folder):
    message = refused(run(folder, [tokenized(folder / "a"), tokenized(folder / "b", sha256="f" * 64)]))
    assert "data.sources.b.path was tokenized with another tokenizer (ffffffffffff) than data.sources.a.path" in message
    assert SHA256[:12] in message
    assert "data.sources.b.path" in message and "tokenizer.json" in message and "data.other_tokenizer" in message


def test_held_out_text_of_another_tokenizer_is_refused(folder):
    message = refused(run(folder, [tokenized(folder / "a")], [tokenized(folder / "b", sha256="f" * 64)]))
    assert "validation.sources.b was tokenized with another tokenizer" in message


def test_a_model_folder_with_another_tokenizer_than_all_sources_is_refused(folder):
    message = refused(run(folder, [tokenized(folder / "a", sha256="f" * 64)]))
    assert "was tokenized with another tokenizer.json (ffffffffffff) than" in message
    assert SHA256[:12] in message


def test_another_end_of_a_document_is_refused(folder):
    message = refused(run(folder, [tokenized(folder / "a"), tokenized(folder / "b", eod=2)]))
    assert "data.sources.b.path was tokenized with another end-of-document id (2) than data.sources.a.path" in message


def test_another_tokenizer_can_be_allowed(folder):
    sources = [tokenized(folder / "a"), tokenized(folder / "b", sha256="f" * 64)]
    check_run(run(folder, sources, data={"other_tokenizer": True}), 1)


def test_a_vocabulary_past_the_embedding_is_no_fault_where_its_ids_are_not_used(folder):
    check_run(run(folder, [tokenized(folder / "a", vocab_size=NUM_ROWS + 1)]), 1)  # an unused <pad>


def test_an_id_past_the_embedding_is_refused_whatever_is_allowed(folder):
    source = tokenized(folder / "a", vocab_size=NUM_ROWS + 1, highest_id=NUM_ROWS)
    message = refused(run(folder, [source], data={"other_tokenizer": True}))
    assert f"holds the token id {NUM_ROWS}, the model has {NUM_ROWS} rows" in message


def test_a_source_without_text_is_refused(folder):
    message = refused(run(folder, [tokenized(folder / "a"), tokenized(folder / "b", tokens=(0, 0))]))
    assert "data.sources.b.path" in message and "has no token in its train split" in message


def test_a_source_that_rounds_to_nothing_is_refused(folder):
    config = run(folder, [tokenized(folder / "a")], data={"sources": {"b": {
        "path": str(tokenized(folder / "b")), "epochs": 0.0001}}})
    assert "data.sources.b: of its 256 tokens the run would see nothing" in refused(config)


def test_a_held_out_split_without_a_token_is_refused(folder):
    message = refused(run(folder, [tokenized(folder / "a")], [tokenized(folder / "b", tokens=(256, 0))]))
    assert "validation.sources.b" in message and "has no token in its valid split" in message
    assert "valid_fraction" in message


@pytest.mark.parametrize("style", ["cosine", "linear", "constant"])
@pytest.mark.parametrize("key", ["decay_fraction", "decay_tokens", "decay_iters"])
def test_a_decay_that_the_schedule_would_ignore_is_refused(folder, style, key):
    config = run(folder, [folder / "a"], schedule={"style": style, key: 1})
    assert any(f"schedule.{key} is of style WSD alone" in problem for problem in planned_problems(config, 1, None))
    config = run(folder, [folder / "a"], schedule={"style": "WSD", "warmup_iters": 0, key: 1})
    assert not any(key in problem for problem in planned_problems(config, 1, None))
