"""Stage 3: documents to Megatron indexed datasets, byte-identical to Megatron-LM's `preprocess_data.py --append-eod`.

Each split holds what that program writes for the split's documents in their order: the ids of a document, then the
end-of-document id, as one sequence; a document without ids is a document boundary without a sequence. Which ids an
encoder gives is stated in `megatron_ext.data.encoders`.

`sequences.parquet` has a row for every document, also the empty ones, in order: split, document (its number in the
split, as the boundaries of the `.idx` count), sequence (null for an empty document), id, document_id, style, chunks
(of a rewrite: numbers of the source chunks whose rewrites its text joins; else null), num_tokens (with the
end-of-document id) and num_bytes (of the text).

The work is done in parts, one a chunk of the corpus, and joined in order: the result does not depend on the number of
workers, and a run that was killed goes on with the parts that it lacks.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash
from pydantic import Field, field_validator

from megatron_ext.artifacts import Artifact, is_finished, write_json
from megatron_ext.data.corpus import CHUNK_BYTES, Chunk, Corpus
from megatron_ext.data.documents import CHUNKS, CHUNKS_TYPE, DOCUMENTS_FOLDER, write_parquet
from megatron_ext.data.encoders import Encoded, with_begin
from megatron_ext.data.hub import open_corpus
from megatron_ext.data.id_facts import IdFacts
from megatron_ext.data.indexed import bin_path, idx_path, token_dtype, write_index
from megatron_ext.data.shards import is_documents_artifact
from megatron_ext.data.token_bytes import token_bytes
from megatron_ext.data.tokenizers import EncoderName, TrainingTokenizer, load_tokenizer
from megatron_ext.data.workers import available_cores, map_in_order
from megatron_ext.errors import UserError
from megatron_ext.files import replacing
from megatron_ext.identity import LAYOUT, PLACE, WATCHING
from megatron_ext.parts import PART, Merge, Part, check_parts
from megatron_ext.progress import Progress
from megatron_ext.settings import REPEATS, Place
from megatron_ext.stage import StageSettings, make_artifact, request_settings

SPLITS = ("train", "valid")
SEQUENCES = "sequences.parquet"
TOKEN_BYTES = "token_bytes.npy"
_COUNTS = "counts.json"
_PARTS = "parts"
_FACTS = b"id_facts"  # key in the schema of a part's metadata
_METADATA_ROWS = 65_536
_PART_SCHEMA = pa.schema({"split": pa.string(), "id": pa.string(), "document_id": pa.string(), "style": pa.string(),
                          CHUNKS: CHUNKS_TYPE, "num_tokens": pa.int64(), "num_bytes": pa.int64()})
_PLACES = (pa.field("document", pa.int64()), pa.field("sequence", pa.int64()))
_SIDECAR_SCHEMA = pa.schema([_PART_SCHEMA.field(0), *_PLACES, *list(_PART_SCHEMA)[1:]])


class TokenizeSettings(StageSettings):
    """Settings of the tokenizing stage."""

    documents: Annotated[Place | list[Place], PLACE, REPEATS]
    """A selection or rewrites artifact, or any corpus, as tools.select_corpus reads it."""
    tokenizer: Annotated[Path, PLACE]
    """Folder with tokenizer.json (and tokenizer_config.json) or tokenizer.model."""
    encoder: Annotated[EncoderName, LAYOUT] = "auto"
    """What encodes; auto: the fastest with the ids of `tokenizers` (where there is a tokenizer.json) or
    `sentencepiece`."""
    text_column: str = "text"
    """Column of the text (plain corpora only); `a.b` is the column b of the nested column a."""
    id_column: str | None = "id"
    """Column of the document's id (plain corpora only); null: ids are made from the text."""
    styles: list[str] | None = Field(default=None, min_length=1)
    """Only documents of these styles, e.g. [easy, qa] of a rewrites artifact; null: all."""
    append_eod: bool = True
    """End every document with the tokenizer's end-of-sequence id."""
    prepend_bos: bool = False
    """Begin every document with the tokenizer's begin-of-sequence id, as some models (Llama) saw in their pretraining;
    Megatron-LM's preprocessing does not."""
    other_tokenizer: Annotated[bool, WATCHING] = False
    """Allow another tokenizer than the one that counted the documents' tokens when they were selected."""
    valid_fraction: float = Field(default=0.0, ge=0.0, le=1.0)
    """Share of documents for validation, by hash of document_id: rewrites stay on the side of their original; 1: all,
    a text that is only measured."""
    split_seed: int = Field(default=0, ge=0)
    """Seed of that hash; use the same for all subsets of a study."""
    workers: Annotated[int | None, WATCHING] = Field(default=None, ge=1)
    """Processes; default: one a core. Does not change the result."""

    @field_validator("documents", mode="before")
    @classmethod
    def _documents_are_places(cls, documents: Any) -> Any:
        return list(map(str, documents)) if isinstance(documents, list | tuple) else \
            str(documents) if isinstance(documents, Path) else documents


@dataclass(frozen=True)
class _PartTask:
    settings: TokenizeSettings
    chunk: Chunk
    part: Path
    """Path prefix of the part's files."""


def tokenize_corpus(settings: TokenizeSettings, output: Path, share: Part | Merge | None = None) -> Artifact:
    """Tokenize a corpus into the artifact `output` (kind "tokenized"): train.bin/.idx, valid.bin/.idx,
    sequences.parquet (which document each sequence is, see above) and token_bytes.npy.

    A part tokenizes its chunks of the corpus into a folder beside `output`; a merge joins those of all parts.

    Raises UserError for a corpus or tokenizer that cannot be read, for a tokenizer other than the one that counted the
    documents' tokens, and for a document without a text.
    """
    tokenizer = load_tokenizer(settings.tokenizer, settings.encoder)
    if not settings.other_tokenizer:
        _refuse_other_tokenizer(settings, tokenizer)
    corpus = _corpus(settings)
    more = {"encoder": tokenizer.reference, "tokenizer_sha256": tokenizer.sha256,
            "eod_token_id": tokenizer.eod_token_id,
            "bos_token_id": tokenizer.bos_token_id() if settings.prepend_bos else None} | corpus.request()
    request = request_settings(settings, more)
    inputs = corpus.inputs("documents")
    if isinstance(share, Part):
        return make_artifact(share.folder(output), kind="tokenized_part", inputs=inputs, settings=settings,
                             more=more | {PART: [share.index, share.count]},
                             make=lambda folder: _make_share(folder, settings, tokenizer, share))

    def make(folder: Path) -> dict[str, Any]:
        shares = share.folders(output) if share else []
        check_parts(shares, request, inputs)
        return _make(folder, settings, tokenizer, shares)

    return make_artifact(output, kind="tokenized", settings=settings, more=more, inputs=inputs, make=make)


def _refuse_other_tokenizer(settings: TokenizeSettings, tokenizer: TrainingTokenizer) -> None:
    """Raise UserError when the documents are an artifact whose tokens another tokenizer counted."""
    for place in [settings.documents] if isinstance(settings.documents, str) else settings.documents:
        folder = Path(place).parent if Path(place).name == DOCUMENTS_FOLDER else Path(place)
        if not is_documents_artifact(folder) or not is_finished(folder):
            continue
        counted_by = Artifact.open(folder).counts.get("tokenizer_sha256")
        if counted_by not in (None, tokenizer.sha256):
            raise UserError(f"the tokens of {folder} were counted by another tokenizer ({counted_by[:12]}…) than "
                            f"{settings.tokenizer} ({tokenizer.sha256[:12]}…): its budget would not be what is "
                            "trained on. Select with this tokenizer, or say other_tokenizer=true")


def is_validation(document_id: str, split_seed: int, valid_fraction: float) -> bool:
    """Whether a document, with all its rewrites, is validation data: XXH3-64 of its id, uniform in [0, 1)."""
    return xxhash.xxh3_64_intdigest(document_id.encode(), seed=split_seed) < valid_fraction * 2**64


def _make_share(folder: Path, settings: TokenizeSettings, tokenizer: TrainingTokenizer, share: Part) -> dict[str, Any]:
    print(f"tokenize: {tokenizer.choice}", flush=True)
    chosen = settings.model_copy(update={"encoder": tokenizer.encoder.name})
    return {"chunks": len(_make_parts(folder, chosen, share))}


def _make(folder: Path, settings: TokenizeSettings, tokenizer: TrainingTokenizer,
          shares: Sequence[Path]) -> dict[str, Any]:
    """Make the whole; what `shares` hold, the finished parts of other machines, is not made again."""
    counts_path = folder / _COUNTS  # written last: with it, only the tidying up can be missing
    if not counts_path.exists():
        print(f"tokenize: {tokenizer.choice}", flush=True)
        chosen = settings.model_copy(update={"encoder": tokenizer.encoder.name})  # so that no worker has to choose
        parts = _collect_parts(chosen, shares) if shares else _make_parts(folder / _PARTS, chosen)
        dtype = token_dtype(tokenizer.vocab_size)
        for split in SPLITS:
            _join_bin(bin_path(folder / split), [_part_bin(part, split) for part in parts])
        counts = _join_metadata(folder, parts, dtype)
        _write_array(folder / TOKEN_BYTES, token_bytes(tokenizer.vocabulary_path))
        counts |= {"eod_token_id": tokenizer.eod_token_id, "vocab_size": tokenizer.vocab_size} | _facts(parts) | {
                   "encoder": tokenizer.reference, "tokenizer_sha256": tokenizer.sha256,
                   "tokenizer_files": tokenizer.files}
        write_json(counts_path, counts)
    if (folder / _PARTS).exists():
        shutil.rmtree(folder / _PARTS)
    return json.loads(counts_path.read_text(encoding="utf-8"))


def _collect_parts(settings: TokenizeSettings, shares: Sequence[Path]) -> list[Path]:
    """The path prefix of every chunk's part, in order, in the folders of the machines that made them."""
    num_chunks = len(_chunks(settings))
    return [shares[number % len(shares)] / f"{number:06d}" for number in range(num_chunks)]


def _make_parts(folder: Path, settings: TokenizeSettings, share: Part | None = None) -> list[Path]:
    """Tokenize the chunks that have no finished part yet; returns the path prefix of every part, in order."""
    folder.mkdir(exist_ok=True)
    tasks = [_PartTask(settings, chunk, folder / f"{number:06d}")
             for number, chunk in enumerate(_chunks(settings))
             if share is None or share.takes(number)]
    missing = [task for task in tasks if not _part_metadata(task.part).exists()]
    progress = Progress("tokenize", len(tasks), "parts", rate_unit="tokens", already_done=len(tasks) - len(missing))
    for num_tokens in map_in_order(_make_part, missing, settings.workers or available_cores()):
        progress.advance(1, num_tokens)
    return [task.part for task in tasks]


def _make_part(task: _PartTask) -> int:
    """Tokenize one chunk; its metadata file, written last, says that the part is whole. Returns its tokens."""
    settings = task.settings
    tokenizer = load_tokenizer(settings.tokenizer, settings.encoder, is_tried=True)
    dtype = token_dtype(tokenizer.vocab_size)
    facts = IdFacts(tokenizer.special_token_ids, dtype, tokenizer.vocab_size)
    metadata = []
    with _part_file(task.part, "train") as train, _part_file(task.part, "valid") as valid:
        for batch in _of_styles(_corpus(settings).read(task.chunk), settings.styles):
            encoded = _encode(batch, tokenizer, settings, task.chunk.name)
            ids = facts.cast(encoded, _frame_ids(settings, tokenizer))
            in_valid = _in_validation(batch, settings)
            for side, run in _runs_of_one_side(ids, encoded.lengths, in_valid):
                (valid if side else train).write(memoryview(run))
            metadata.append(_metadata(batch, in_valid, encoded.lengths))
    table = pa.Table.from_batches(metadata, schema=_PART_SCHEMA.with_metadata({_FACTS: json.dumps(facts.as_json())}))
    write_parquet(_part_metadata(task.part), table, row_group_rows=_METADATA_ROWS)
    return int(pc.sum(table.column("num_tokens")).as_py() or 0)


def _of_styles(batches: Iterable[pa.RecordBatch], styles: Sequence[str] | None) -> Iterator[pa.RecordBatch]:
    """The documents of these styles; batches without any are left out."""
    for batch in batches:
        chosen = batch if styles is None else batch.filter(pc.is_in(batch.column("style"), pa.array(styles)))
        if chosen.num_rows:
            yield chosen


def _in_validation(batch: pa.RecordBatch, settings: TokenizeSettings) -> np.ndarray:
    """Which documents are validation data, bool `[rows]`."""
    if not settings.valid_fraction:
        return np.zeros(len(batch), dtype=bool)
    return np.array([is_validation(document_id, settings.split_seed, settings.valid_fraction)
                     for document_id in batch.column("document_id").to_pylist()], dtype=bool)


def _encode(batch: pa.RecordBatch, tokenizer: TrainingTokenizer, settings: TokenizeSettings, shard: str) -> Encoded:
    texts = batch.column("text")
    if texts.null_count:
        nameless = batch.column("id")[pc.index(pc.is_null(texts), True).as_py()]
        raise UserError(f"{shard}: document {nameless.as_py()!r} has no text (null); select the corpus first, or give "
                        "it a text")
    # As Megatron-LM: no end of document where there is no document.
    encoded = tokenizer.encoder.encode(texts, end_id=tokenizer.eod_token_id if settings.append_eod else None)
    return with_begin(encoded, tokenizer.bos_token_id()) if settings.prepend_bos else encoded


def _frame_ids(settings: TokenizeSettings, tokenizer: TrainingTokenizer) -> list[int]:
    """The ids that every document gets besides those of its text."""
    return ([tokenizer.bos_token_id()] if settings.prepend_bos else []) + (
        [tokenizer.eod_token_id] if settings.append_eod else [])


def _runs_of_one_side(ids: np.ndarray, lengths: np.ndarray,
                      in_valid: np.ndarray) -> Iterator[tuple[bool, np.ndarray]]:
    """(is it validation data, ids) for each run of documents on one side of the split, in order."""
    ends = np.cumsum(lengths)
    starts = np.flatnonzero(np.diff(in_valid, prepend=~in_valid[:1]))
    for first, last in zip(starts, [*starts[1:], len(in_valid)], strict=True):
        yield bool(in_valid[first]), ids[ends[first] - lengths[first]:ends[last - 1]]


def _metadata(batch: pa.RecordBatch, in_valid: np.ndarray, lengths: np.ndarray) -> pa.RecordBatch:
    columns = {"split": pa.array(np.where(in_valid, "valid", "train")).cast(pa.string()),
               "id": batch.column("id"), "document_id": batch.column("document_id"), "style": batch.column("style"),
               CHUNKS: batch.column(CHUNKS), "num_tokens": pa.array(lengths),
               "num_bytes": pc.binary_length(batch.column("text")).cast(pa.int64())}
    return pa.record_batch(columns, schema=_PART_SCHEMA)


def _join_bin(path: Path, parts: Sequence[Path]) -> None:
    with replacing(path) as temporary, open(temporary, "wb") as joined:
        for part in parts:
            with open(part, "rb") as file:
                _append(joined, file)


def _append(joined: BinaryIO, file: BinaryIO) -> None:
    """Copy a whole file inside the system, where it can."""
    left = os.fstat(file.fileno()).st_size
    try:
        while left:
            copied = os.copy_file_range(file.fileno(), joined.fileno(), left)
            if not copied:
                break  # a file system that does not do it
            left -= copied
    except (AttributeError, OSError):
        pass
    shutil.copyfileobj(file, joined, 2**20)  # what is left, mostly nothing
    joined.flush()


def _join_metadata(folder: Path, parts: Sequence[Path], dtype: np.dtype) -> dict[str, Any]:
    """Write sequences.parquet and the indexes; returns what each split holds."""
    counts = {split: dict.fromkeys(("documents", "empty_documents", "tokens", "bytes"), 0) for split in SPLITS}
    with (replacing(folder / SEQUENCES) as temporary,
          pq.ParquetWriter(temporary, _SIDECAR_SCHEMA, compression="zstd") as writer):
        for part in parts:
            table = pq.read_table(_part_metadata(part))
            for column, (field, place) in enumerate(zip(_PLACES, _places(table, counts), strict=True), start=1):
                table = table.add_column(column, field, place)
            writer.write_table(table, row_group_size=_METADATA_ROWS)
    for split in SPLITS:
        write_index(idx_path(folder / split), _lengths(parts, split), dtype)
    return counts


def _places(table: pa.Table, counts: dict[str, dict[str, int]]) -> tuple[pa.Array, pa.Array]:
    """The number of each document in its split, and of its sequence (null without one); adds them to `counts`."""
    documents, sequences = np.zeros((2, len(table)), dtype=np.int64)
    num_tokens, num_bytes = table["num_tokens"].to_numpy(), table["num_bytes"].to_numpy()
    for split, count in counts.items():
        here = pc.equal(table["split"], split).to_numpy()
        present = here & (num_tokens > 0)
        documents[here] = count["documents"] + np.arange(here.sum())
        sequences[present] = count["documents"] - count["empty_documents"] + np.arange(present.sum())
        count["documents"] += int(here.sum())
        count["empty_documents"] += int(here.sum() - present.sum())
        count["tokens"] += int(num_tokens[here].sum())
        count["bytes"] += int(num_bytes[here].sum())
    return pa.array(documents), pa.array(sequences, mask=num_tokens == 0)


def _lengths(parts: Sequence[Path], split: str) -> Iterator[np.ndarray]:
    """The tokens of a split's documents, part by part."""
    for part in parts:
        table = pq.read_table(_part_metadata(part), columns=["split", "num_tokens"])
        yield table.filter(pc.equal(table["split"], split))["num_tokens"].to_numpy()


def _facts(parts: Sequence[Path]) -> dict[str, Any]:
    """What is known of the ids in all parts."""
    return IdFacts.joined([json.loads(pq.read_schema(_part_metadata(part)).metadata[_FACTS]) for part in parts])


def _write_array(path: Path, array: np.ndarray) -> None:
    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.save(file, array)


def _corpus(settings: TokenizeSettings) -> Corpus:
    return open_corpus(settings.documents, settings.text_column, settings.id_column, {}, with_chunks=True)


def _chunks(settings: TokenizeSettings) -> list[Chunk]:
    """The chunks of the corpus, after saying what is read."""
    corpus = _corpus(settings)
    print(f"documents: {corpus.describe()}", flush=True)
    return corpus.chunks(CHUNK_BYTES)


@contextmanager
def _part_file(part: Path, split: str) -> Iterator[BinaryIO]:
    with replacing(_part_bin(part, split)) as temporary, open(temporary, "wb") as file:
        yield file


def _part_bin(part: Path, split: str) -> Path:
    return part.with_name(f"{part.name}.{split}.bin")


def _part_metadata(part: Path) -> Path:
    return part.with_name(f"{part.name}.parquet")
