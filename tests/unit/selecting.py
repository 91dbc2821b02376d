"""What the tests of selection share: a scored corpus of their own in several layouts, and a short way to select."""

import json
import random

import pyarrow as pa
import pyarrow.parquet as pq

from megatron_ext.data.documents import read_documents
from megatron_ext.data.selection import SelectSettings, select_corpus
from tests.unit.tokenizer_folders import TEXTS

SCORES = {"stem": "stem_score", "edu": "edu_score"}
RULE = "stem > 2.5 or edu > 2.5"
ROWS = [{"id": f"d{i:03d}", "text": f"{i}: {TEXTS[i % 4]}" * (2 + i % 3), "stem_score": i % 11 / 2,
         "edu_score": i % 7 / 2} for i in range(300)]


def select(corpus, tokenizer, output, share=None, **values):
    values = {"scores": SCORES, "rule": RULE, "workers": 1, "keep_measures": False} | values
    return select_corpus(SelectSettings(corpus=corpus, tokenizer=tokenizer, **values), output, share)


def chosen(artifact):
    return [document.id for document in read_documents(artifact.path)]


def write_parquet_shards(folder, rows, num_shards, seed=0):
    folder.mkdir()
    rows = random.Random(seed).sample(rows, len(rows))
    for number in range(num_shards):
        pq.write_table(pa.Table.from_pylist(rows[number::num_shards]), folder / f"{number:02d}.parquet",
                       row_group_size=5)
    return folder


def write_jsonl_zst(folder, rows, num_shards, seed=0):
    folder.mkdir()
    rows = random.Random(seed).sample(rows, len(rows))
    for number in range(num_shards):
        lines = "".join(json.dumps(row) + "\n" for row in rows[number::num_shards]).encode()
        (folder / f"{number}.jsonl.zst").write_bytes(pa.compress(lines, codec="zstd", asbytes=True))
    return folder
