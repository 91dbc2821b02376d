"""The contestants of benchmarks.tokenize that run in our environment.

Each is prepared outside the measured time with (tokenizer folder, work folder, workers), and returns what to time,
which in turn returns the `.bin` that it wrote. The work folder holds documents.parquet and documents.jsonl.
"""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from megatron_ext.data.encoder_choice import VOCABULARY_FILES
from megatron_ext.data.encoders import (
    EncoderRefusedError,
    GigatokenEncoder,
    HuggingFaceEncoder,
    Reference,
    SentencePieceEncoder,
)
from megatron_ext.data.indexed import token_dtype, write_index

Prepare = Callable[[Path, Path, int], Callable[[], Path | None]]
_BATCH_ROWS = 256
_POOL_CHUNK_DOCUMENTS = 32  # as preprocess_data.py takes them


def open_reference(folder: Path, library: str) -> Reference:
    """The reference encoder of a tokenizer folder."""
    path = folder / VOCABULARY_FILES[library]
    return HuggingFaceEncoder(path) if library == "tokenizers" else SentencePieceEncoder(path)


def ours(documents: str, encoder: str) -> Prepare:
    """This project's stage, with all it does: hashes, sidecar, manifest."""
    def prepare(tokenizer: Path, work: Path, workers: int) -> Callable[[], Path]:
        from megatron_ext.data.tokenization import TokenizeSettings, tokenize_corpus
        from megatron_ext.data.tokenizers import load_tokenizer

        load_tokenizer(tokenizer, encoder)
        settings = TokenizeSettings(documents=work / documents, tokenizer=tokenizer, encoder=encoder, workers=workers)
        return lambda: tokenize_corpus(settings, work / "out").path / "train.bin"

    return prepare


def gigatoken(library: str) -> Prepare:
    """The library in the smallest pipeline around it; one thread."""
    def prepare(tokenizer: Path, work: Path, workers: int) -> Callable[[], Path]:
        reference = open_reference(tokenizer, library)
        encoder = GigatokenEncoder(tokenizer / VOCABULARY_FILES[library], reference)
        return lambda: _write_dataset(encoder, reference.eod_token_id(), work)

    return prepare


def gigatoken_alone(tokenizer: Path, work: Path, workers: int) -> Callable[[], None]:
    """The library on texts that lie in memory as it wants them, its ids thrown away; one thread."""
    import awkward
    from gigatoken import Tokenizer

    try:
        opened = Tokenizer.from_json((tokenizer / "tokenizer.json").read_bytes())
    except RuntimeError as error:
        raise EncoderRefusedError(str(error).partition("\n")[0]) from None
    texts = [awkward.from_arrow(batch.cast(pa.large_string())) for batch in _text_batches(work)]

    def run() -> None:
        for batch in texts:
            opened.encode_batch(batch, parallel=False)

    return run


def tokenizers_alone(tokenizer: Path, work: Path, workers: int) -> Callable[[], None]:
    """The same of `tokenizers`, up to the lists of ids that it gives."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    from tokenizers import Tokenizer

    opened = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    texts = [batch.to_pylist() for batch in _text_batches(work)]

    def run() -> None:
        for batch in texts:
            for encoding in opened.encode_batch_fast(batch, add_special_tokens=False):
                encoding.ids  # noqa: B018 (the list is made when it is asked for)

    return run


def _text_batches(work: Path) -> Iterator[pa.Array]:
    with pq.ParquetFile(work / "documents.parquet") as documents:
        for batch in documents.iter_batches(_BATCH_ROWS, columns=["text"], use_threads=False):
            yield batch.column("text")


def _write_dataset(encoder: GigatokenEncoder, end_id: int, work: Path) -> Path:
    lengths = []
    dtype = token_dtype(encoder.vocab_size)
    with open(work / "out.bin", "wb") as file:
        for batch in _text_batches(work):
            encoded = encoder.encode(batch, end_id=end_id)
            file.write(encoded.ids.astype(dtype))
            lengths.append(encoded.lengths)
    write_index(work / "out.idx", lengths, dtype)
    return work / "out.bin"


def megatron(library: str) -> Prepare:
    """What preprocess_data.py does: a pool parses and encodes lines, this process writes document after document.

    Its HF tokenizer is `tokenizers` inside transformers; here `tokenizers` is called directly, which is faster.
    """
    def prepare(tokenizer: Path, work: Path, workers: int) -> Callable[[], Path]:
        reference = open_reference(tokenizer, library)
        dtype, end_id = token_dtype(reference.vocab_size), reference.eod_token_id()

        def run() -> Path:
            lengths = []
            pool = multiprocessing.get_context("fork").Pool(workers, _start_worker, (tokenizer, library, end_id))
            with open(work / "documents.jsonl", encoding="utf-8") as lines, open(work / "out.bin", "wb") as file:
                for ids in pool.imap(_encode_line, lines, _POOL_CHUNK_DOCUMENTS):
                    file.write(np.array(ids, dtype=dtype).tobytes())
                    lengths.append(len(ids))
            pool.close()
            pool.join()
            write_index(work / "out.idx", np.array(lengths), dtype)
            return work / "out.bin"

        return run

    return prepare


def _start_worker(tokenizer: Path, library: str, end_id: int) -> None:
    global _encode, _end_id
    _end_id = end_id
    path = str(tokenizer / VOCABULARY_FILES[library])
    if library == "tokenizers":
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        from tokenizers import Tokenizer

        opened = Tokenizer.from_file(path)
        _encode = lambda text: opened.encode(text, add_special_tokens=False).ids  # noqa: E731
    else:
        import sentencepiece

        _encode = sentencepiece.SentencePieceProcessor(model_file=path).encode


def _encode_line(line: str) -> list[int]:
    ids = _encode(json.loads(line)["text"])
    return [*ids, _end_id] if ids else ids


CONTESTANTS: dict[str, dict[str, Prepare]] = {
    "sentencepiece": {
        "native, Parquet": ours("documents.parquet", "native"),
        "native, JSONL": ours("documents.jsonl", "native"),
        "gigatoken, Parquet": gigatoken("sentencepiece"),
        "Megatron-LM's algorithm, JSONL": megatron("sentencepiece"),
    },
    "tokenizers": {
        "ours (auto), Parquet": ours("documents.parquet", "auto"),
        "ours (auto), JSONL": ours("documents.jsonl", "auto"),
        "gigatoken, Parquet": gigatoken("tokenizers"),
        "gigatoken alone": gigatoken_alone,
        "tokenizers alone": tokenizers_alone,
        "Megatron-LM's algorithm, JSONL": megatron("tokenizers"),
    },
}
"""Reference library -> name of a contestant -> how it is prepared."""
