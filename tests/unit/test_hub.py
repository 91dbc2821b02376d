import pytest

from megatron_ext.data import hub
from megatron_ext.data.hub import open_corpus
from megatron_ext.data.selection import stage
from megatron_ext.errors import UserError
from tests.unit.selecting import ROWS, SCORES, select, write_parquet_shards
from tests.unit.tokenizer_folders import byte_level_tokenizer


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return write_parquet_shards(tmp_path / "data", ROWS, 4)


def test_a_streamed_data_set_gives_what_its_files_give(folder, tmp_path):
    tokenizer = byte_level_tokenizer(tmp_path / "tokenizer")
    streamed = select(f"hf://{folder}", tokenizer, tmp_path / "streamed", budget_tokens=1_500)
    read = select(folder, tokenizer, tmp_path / "read", budget_tokens=1_500)
    assert streamed.content_hash == read.content_hash
    assert streamed.counts == read.counts


def test_an_interrupted_stream_goes_on_with_the_shards_it_lacks(folder, tmp_path, monkeypatch):
    tokenizer = byte_level_tokenizer(tmp_path / "tokenizer")
    real, read = stage.make_runs, []

    def make_runs(task):
        if len(read) == 2:
            raise KeyboardInterrupt
        read.append(task.chunk.name)
        real(task)

    monkeypatch.setattr(stage, "make_runs", make_runs)
    with pytest.raises(KeyboardInterrupt):
        select(f"hf://{folder}", tokenizer, tmp_path / "out")
    first = read.copy()
    monkeypatch.setattr(stage, "make_runs", lambda task: read.append(task.chunk.name) or real(task))
    artifact = select(f"hf://{folder}", tokenizer, tmp_path / "out")
    assert sorted(read) == ["00.parquet", "01.parquet", "02.parquet", "03.parquet"]
    assert len(first) == 2
    assert artifact.content_hash == select(folder, tokenizer, tmp_path / "whole").content_hash


def test_columns_splits_and_addresses_are_checked(folder):
    with pytest.raises(UserError, match="no column 'edu'; its columns are: id, text, stem_score, edu_score"):
        open_corpus(f"hf://{folder}", "text", "id", SCORES | {"edu": "edu"}).chunks()
    with pytest.raises(UserError, match="cannot be read"):
        open_corpus(f"hf://{folder}?split=valid", "text", "id", {}).chunks()
    with pytest.raises(UserError, match="subset is not understood"):
        open_corpus(f"hf://{folder}?subset=pt", "text", "id", {})


def test_a_hub_data_set_is_known_by_its_commit(monkeypatch):
    monkeypatch.setattr(hub, "_commit", lambda name, revision: f"commit of {name} at {revision}")
    corpus = open_corpus("hf://owner/name?config=pt&split=all&revision=v2", "text", "id", {})
    assert corpus.inputs() == {}
    assert corpus.request() == {"corpus": {"config": "pt", "split": "all", "dataset": "owner/name",
                                           "revision": "commit of owner/name at v2"}}
