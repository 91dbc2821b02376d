"""`--dry-run` of a single program: what would be read and made, how far it is; nothing is written."""

import json
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from megatron_ext import train
from megatron_ext.lease import LEASE, lease
from tests.cpu.tiny import make_tokenized
from tests.unit.tokenizer_folders import byte_level_tokenizer
from tools import rewrite_corpus, select_corpus, tokenize_corpus


@pytest.fixture
def call(capsys, monkeypatch):
    """(exit code, what was told) of a stage's program."""
    def call(program, *arguments):
        monkeypatch.setattr(sys, "argv", ["program", *map(str, arguments)])
        try:
            code = program.main()
        except SystemExit as leaving:
            code = leaving.code
        out, err = capsys.readouterr()
        return code, out + err

    return call


@pytest.fixture
def corpus(tmp_path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    table = pa.table({"id": ["1", "2", "3"], "text": ["olá", "oi", None], "stem_score": pa.array([3.0, None, 1.0])})
    pq.write_table(table, folder / "a.parquet")
    (folder / "notes.csv").write_text("1,2")
    return folder


def test_selecting_tells_shards_columns_nulls_and_what_is_left_out(call, corpus, tmp_path):
    tokenizer = byte_level_tokenizer(tmp_path / "tokenizer")
    arguments = ("--output", tmp_path / "high", "--dry-run", f"corpus={corpus}", f"tokenizer={tokenizer}",
                 "scores.stem=stem_score", "rule=stem > 2")
    code, told = call(select_corpus, *arguments)
    assert code == 0
    assert f"{tmp_path / 'high'}: would be made" in told
    assert "1 shard" in told and f"{(corpus / 'a.parquet').stat().st_size:,} bytes" in told
    assert "notes.csv" in told
    assert "column text: string, 1 of the first 3 rows are null" in told
    assert "column stem: double, 1 of the first 3 rows are null" in told
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus", "tokenizer"]


def test_every_missing_place_is_told_at_once(call, tmp_path):
    code, told = call(rewrite_corpus, "--output", tmp_path / "x", "--dry-run", f"documents={tmp_path / 'a'}",
                      f"model={tmp_path / 'b'}", f"tokenizer={tmp_path / 'c'}")
    assert code == 2
    assert all(f"{key} = {tmp_path / name}: nothing is there"
               in told for key, name in (("documents", "a"), ("model", "b"), ("tokenizer", "c")))


def test_how_far_the_output_is(call, corpus, tmp_path):
    tokenizer = byte_level_tokenizer(tmp_path / "tokenizer")
    pq.write_table(pa.table({"id": ["1", "2"], "text": ["olá", "oi"]}), corpus / "a.parquet")
    arguments = ("--output", tmp_path / "tokens", f"documents={corpus}", f"tokenizer={tokenizer}")
    assert call(tokenize_corpus, *arguments)[0] in (0, None)
    code, told = call(tokenize_corpus, *arguments, "--dry-run")
    assert code == 0
    assert "finished" in told and "nothing would be done" in told
    assert "400 ids" in told or "ids, end of document" in told
    told = call(tokenize_corpus, *arguments, "valid_fraction=0.5", "--dry-run")[1]
    assert "would be refused (valid_fraction: was 0.0, is 0.5)" in told
    partial = tmp_path / "other.partial"
    partial.mkdir()
    (partial / ".request.json").write_text(json.dumps({"settings": {"valid_fraction": 0.5}}))
    arguments = ("--output", tmp_path / "other", *arguments[2:], "--dry-run")
    assert "unfinished, of other settings (valid_fraction: was 0.5, is 0.0)" in call(tokenize_corpus, *arguments)[1]
    assert "unfinished; this would go on with it" in call(tokenize_corpus, *arguments, "valid_fraction=0.5")[1]


@pytest.fixture
def run(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps({
        "architectures": ["LlamaForCausalLM"], "vocab_size": 128, "hidden_size": 64, "intermediate_size": 96,
        "num_hidden_layers": 4, "num_attention_heads": 4, "max_position_embeddings": 128}))
    (tmp_path / "run.yaml").write_text("data: {seq_length: 32}\ntrain: {budget_tokens: 10240, global_batch_size: 8}\n"
                                       "schedule: {style: WSD, warmup_iters: 4, decay_iters: 10}\n")
    return ["--config", str(tmp_path / "run.yaml"), "--dry-run", "--num-processes", "1", f"output={tmp_path / 'run'}",
            f"model.hf_folder={tmp_path / 'model'}", "data.sources.a.fill=true", "data.sources.a.max_epochs=100",
            f"data.sources.a.path={make_tokenized(tmp_path / 'a', 0)}"]


def test_training_tells_its_state_and_its_schedule(run, tmp_path, capsys):
    assert train.main(run) == 0
    told = capsys.readouterr().out
    assert "state: not begun" in told
    assert "schedule: WSD, warm-up 4.0 iterations to 2e-05, constant, linear decay over the last 10.0 to 2e-06" in told
    assert not (tmp_path / "run").exists()


def test_training_tells_who_holds_the_run(run, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    with lease(tmp_path / "run" / LEASE, tmp_path / "run"):
        assert train.main(run) == 0
    assert "held by process" in capsys.readouterr().out


@pytest.mark.parametrize(("style", "told"), [
    ("cosine", "cosine decay over 36.0 to"), ("linear", "linear decay over 36.0 to"), ("constant", "then no decay")])
def test_other_schedules(run, style, told, capsys):
    code = train.main([*run, f"schedule.style={style}", "schedule.decay_iters=null"])
    assert code == 0
    assert told in capsys.readouterr().out
