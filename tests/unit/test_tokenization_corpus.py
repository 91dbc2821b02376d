"""A whole corpus against Megatron's own builder, fed one text after another by the reference libraries themselves.

    MEGATRON_EXT_TOKENIZERS=models/a:models/b pytest tests/unit/test_tokenization_corpus.py
"""

import json
import os
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from megatron_ext.data.tokenization import TokenizeSettings, tokenize_corpus

SHARED = Path(os.environ.get("MEGATRON_EXT_SHARED", Path(__file__).parents[3] / "shared"))
CORPUS = SHARED / "corpus"


def reference_encoder(folder):
    """(text -> ids, end-of-document id, size of the vocabulary), without any code of ours."""
    if (folder / "tokenizer.json").is_file():
        tokenizers = pytest.importorskip("tokenizers")
        opened = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        eos = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))["eos_token"]
        eod = opened.token_to_id(eos["content"] if isinstance(eos, dict) else eos)
        return lambda text: opened.encode(text, add_special_tokens=False).ids, eod, opened.get_vocab_size()
    sentencepiece = pytest.importorskip("sentencepiece")
    model = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    return model.encode, model.eos_id(), model.get_piece_size()


@pytest.mark.slow
@pytest.mark.skipif("MEGATRON_EXT_TOKENIZERS" not in os.environ or not CORPUS.is_dir(),
                    reason="MEGATRON_EXT_TOKENIZERS names no tokenizer folders, or there is no shared corpus")
@pytest.mark.parametrize("folder", os.environ.get("MEGATRON_EXT_TOKENIZERS", "none").split(":"))
def test_the_shared_corpus_gives_megatrons_files(tmp_path, folder):
    megatron = pytest.importorskip("megatron.core.datasets.indexed_dataset")
    encode, eod, vocab_size = reference_encoder(Path(folder))
    builder = megatron.IndexedDatasetBuilder(str(tmp_path / "x.bin"), dtype=megatron.DType.optimal_dtype(vocab_size))
    for shard in sorted(CORPUS.glob("*.parquet")):
        for text in pq.read_table(shard, columns=["text"])["text"].to_pylist():
            ids = encode(text)
            ids += [eod] if ids else []
            builder.add_document(ids, [len(ids)] if ids else [])
    builder.finalize(str(tmp_path / "x.idx"))
    artifact = tokenize_corpus(TokenizeSettings(documents=CORPUS, tokenizer=folder, workers=1), tmp_path / "out")
    for name in ("bin", "idx"):
        assert (artifact.path / f"train.{name}").read_bytes() == (tmp_path / f"x.{name}").read_bytes()
