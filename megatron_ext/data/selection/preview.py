"""What `--dry-run` of selecting and tokenizing tells of a corpus: shards, what is left out, and its first rows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_ext.data.corpus import Corpus
from megatron_ext.data.hub import open_corpus
from megatron_ext.data.model_folder import ModelSettings, read_config

if TYPE_CHECKING:
    from megatron_ext.data.selection.settings import SelectSettings
    from megatron_ext.data.tokenization import TokenizeSettings


def describe_selection(settings: SelectSettings) -> Iterator[str]:
    """The corpus that would be selected from. Raises UserError where it has no shard, or lacks a column."""
    from megatron_ext.data.selection.rules import parse_rule

    labels = parse_rule(settings.rule, settings.scores).labels if settings.rule else frozenset()
    scores = {name: column for name, column in settings.scores.items() if name not in labels}
    yield from _describe(open_corpus(settings.corpus, settings.text_column, settings.id_column, scores,
                                     {name: settings.scores[name] for name in labels}))


def describe_tokenization(settings: TokenizeSettings) -> Iterator[str]:
    """The documents that would be tokenized. Raises UserError where there are none."""
    from megatron_ext.data.tokenizers import load_tokenizer

    yield from _describe(open_corpus(settings.documents, settings.text_column, settings.id_column, {}))
    tokenizer = load_tokenizer(settings.tokenizer, settings.encoder)
    yield f"{tokenizer.choice}, {tokenizer.vocab_size:,} ids, end of document {tokenizer.eod_token_id}"


def describe_model(settings: ModelSettings) -> Iterator[str]:
    """The folder that would be taken. Raises UserError where it is no model."""
    if Path(settings.model).is_dir():
        yield f"model: {', '.join(read_config(Path(settings.model)).get('architectures') or ['unknown'])}"
    else:
        yield f"model: {settings.model}, to be fetched"


def _describe(corpus: Corpus) -> Iterator[str]:
    yield f"corpus: {corpus.describe()}"
    chunks = corpus.chunks()
    yield f"work: {len(chunks):,} chunks"
    batch = next(corpus.read_raw(chunks[0]), None) if chunks else None
    if batch is None:
        return
    for name, array in batch.arrays.items():
        yield f"column {name}: {array.type}, {array.null_count:,} of the first {batch.num_rows:,} rows are null"
