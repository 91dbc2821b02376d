from argparse import Namespace

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from benchmarks import select, select_peers
from tests.unit.tokenizer_folders import byte_level_tokenizer


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("select") / "corpus"
    select.write_corpus(folder, 300_000)
    return folder


def test_the_corpus_has_the_size_that_was_asked_for(corpus):
    rows = pq.read_table(corpus)
    largest = pc.max(pc.binary_length(rows["text"])).as_py()
    assert 300_000 <= pc.sum(pc.binary_length(rows["text"])).as_py() < 300_000 + select._NUM_SHARDS * largest
    assert len(set(rows["id"].to_pylist())) == len(rows)


def test_ours_selects_what_a_plain_filter_does(corpus, tmp_path):
    rows = pq.read_table(corpus)
    passing = rows.filter(pc.or_(pc.greater(rows["stem_score"], 2.5), pc.greater(rows["edu_score"], 2.5)))
    (tmp_path / "plain").mkdir()
    pq.write_table(passing, tmp_path / "plain" / "rows.parquet")
    arguments = Namespace(corpus=corpus, work=tmp_path, workers=1, tokenizer=byte_level_tokenizer(tmp_path / "bpe"))
    for name in ("ours", "ours, tokens counted"):
        (tmp_path / name).mkdir()
        arguments.work = tmp_path / name
        turn = select.CONTESTANTS[name](arguments)
        assert turn["ids"] == select_peers.ids_digest(tmp_path / "plain")
        assert turn["wall_seconds"] > 0
    assert sum(map(len, select._passing_texts(corpus))) == len(passing) > 0
