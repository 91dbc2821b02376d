"""Stage 2: rewrite the documents of a selection in several styles."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, field_validator

from megatron_ext.artifacts import Artifact, produce, write_json
from megatron_ext.data.documents import Document, read_documents
from megatron_ext.data.rewriting import outputs, work
from megatron_ext.data.rewriting.checks import load_thresholds
from megatron_ext.data.rewriting.chunking import CountTokens, split_into_chunks
from megatron_ext.data.rewriting.engines import EngineName, Sampling, open_engine
from megatron_ext.data.rewriting.prompts import Order, load_prompts
from megatron_ext.data.rewriting.sharing import merge_parts
from megatron_ext.errors import UserError
from megatron_ext.parts import PART, Merge, Part, check_parts
from megatron_ext.settings import Settings

_PATHS = {"documents", "model", "tokenizer", "prompts_folder", "thresholds_file"}
Count = Annotated[int, Field(ge=1)]


class RewriteSettings(Settings):
    """How a selection is rewritten."""

    documents: Path
    """Selection (artifact) whose documents are rewritten."""
    model: Path
    """Folder of the rewriter, an instruct model (tools.fetch_model)."""
    tokenizer: Path
    """Folder of the training tokenizer, which counts tokens."""
    styles: list[str] = Field(["easy", "medium", "hard", "qa"], min_length=1)
    """Styles to write; each has a prompt file."""
    prompts_folder: Path | None = None
    """Folder with prompt files of one's own, `<style>.md`; they win over the built-in ones."""
    thresholds_file: Path | None = None
    """YAML file of thresholds by style in place of the built-in one."""
    order: Order = "document_first"
    """document_first lets an engine with a prefix cache share a chunk among its styles."""
    max_documents: Count | None = None
    """At most so many documents, chosen by a hash of their ids; none: all."""
    max_document_tokens: Count | None = None
    """Longer documents are left out."""
    max_chunks_per_document: Count | None = None
    """Only so many chunks from the start of each document (a trial run); none: all, nothing of a document is lost."""
    chunk_tokens: int = Field(350, ge=8)
    """Size of a chunk at most, in tokens of the source; longer inputs lose information (WRAP, arXiv 2401.16380)."""
    failed_chunks: outputs.FailedChunks = "survivors"
    """When a chunk failed its checks: keep the document's other chunks, or drop_document."""
    engine: EngineName = "transformers"
    """What runs the model."""
    sampling: Sampling = Sampling()
    """How tokens are drawn."""
    max_new_tokens_ratio: float = Field(2.0, gt=0)
    """Tokens that a completion may have, at most, for each token of its source."""
    min_new_tokens: Count = 32
    """The same bound is never below this, for short sources."""
    batch_size: Count = 16
    """Requests that the engine gets at a time; also what a killed run loses at most."""
    retries: int = Field(1, ge=0)
    """How often a failed chunk is asked for again, with another seed."""
    seed: int = 0
    """Decides the choice of documents and what is drawn."""

    @field_validator("styles")
    @classmethod
    def _no_style_twice(cls, styles: list[str]) -> list[str]:
        if len(set(styles)) < len(styles):
            raise ValueError("a style is named twice")
        return styles


def rewrite_corpus(settings: RewriteSettings, output: Path, share: Part | Merge | None = None) -> Artifact:
    """Make the artifact `output` (kind "rewrites"); it goes on after an interruption.

    It holds documents/ (see megatron_ext.data.documents), chunks.parquet (every attempt, with the reasons against it)
    and summary.json (by style). No survivor is no error: documents/ then holds no row. A part rewrites its share of the
    documents into a folder beside `output`; a merge makes `output` of the parts, without an engine.

    Raises UserError for a missing input, an unknown style, a model without chat template, a selection without a
    document that may be rewritten.
    """
    prompts = {prompt.style: prompt for prompt in load_prompts(settings.styles, settings.prompts_folder)}
    thresholds = load_thresholds(settings.styles, settings.thresholds_file)
    request = settings.model_dump(mode="json", exclude=_PATHS) | {
        "prompts": {style: {"version": prompt.version, "sha256": prompt.sha256} for style, prompt in prompts.items()},
        "thresholds": {style: values.model_dump() for style, values in thresholds.items()},
    }

    inputs = {"documents": settings.documents, "model": settings.model, "tokenizer": settings.tokenizer}
    if isinstance(share, Merge):
        return _merge(share, output, request, inputs)
    if share is not None:
        output, request = share.folder(output), request | {PART: [share.index, share.count]}

    def make(folder: Path) -> dict[str, Any]:
        summary_file = folder / outputs.SUMMARY_FILE
        if not summary_file.exists():
            count_tokens = token_counter(settings.tokenizer)
            rewriter = work.Rewriter(
                prompts=prompts, thresholds=thresholds, order=settings.order, seed=settings.seed,
                max_new_tokens_ratio=settings.max_new_tokens_ratio, min_new_tokens=settings.min_new_tokens,
                batch_size=settings.batch_size, retries=settings.retries, count_tokens=count_tokens,
                open_engine=lambda: open_engine(settings.engine, settings.model, settings.sampling))
            items, ledger = plan_items(settings, count_tokens, share)
            attempts = work.run(rewriter, items, folder / work.COMPLETIONS_FOLDER)
            outputs.write_chunks(folder, attempts, prompts)
            outcomes = outputs.write_documents(folder, attempts, settings.failed_chunks, count_tokens)
            write_json(summary_file, {"selection": ledger, "rewrites": dict(outcomes),
                                      "styles": outputs.summarize(attempts, settings.styles)})
        # The summary is written last: with it, all that the completions say stands in chunks.parquet.
        shutil.rmtree(folder / work.COMPLETIONS_FOLDER, ignore_errors=True)
        return _counts(json.loads(summary_file.read_text(encoding="utf-8")))

    return produce(output, kind="rewrites", settings=request, inputs=inputs, make=make)


def _merge(share: Merge, output: Path, request: dict[str, Any], inputs: dict[str, Path]) -> Artifact:
    def make(folder: Path) -> dict[str, Any]:
        parts = share.folders(output)
        check_parts(parts, request, inputs)
        merge_parts(parts, folder)
        return _counts(json.loads((folder / outputs.SUMMARY_FILE).read_text(encoding="utf-8")))

    return produce(output, kind="rewrites", settings=request, inputs=inputs, make=make)


def plan_items(settings: RewriteSettings, count_tokens: CountTokens,
               part: Part | None = None) -> tuple[list[work.Item], dict[str, int]]:
    """Every (chunk, style) to be written, by a part of its own documents, and the ledger of what was left out."""
    documents = list(read_documents(settings.documents))
    chosen = choose_documents(documents, settings)
    if part is not None:
        chosen = [document for position, document in enumerate(chosen) if part.takes(position)]
    items: list[work.Item] = []
    ledger = {"num_documents": len(documents), "num_chosen_documents": len(chosen), "num_chunks": 0,
              "num_chunks_left_out": 0}
    for document in chosen:
        chunks = [chunk for chunk in split_into_chunks(document.text, settings.chunk_tokens, count_tokens)
                  if chunk.strip()]
        taken = chunks[:settings.max_chunks_per_document]
        ledger["num_chunks"] += len(taken)
        ledger["num_chunks_left_out"] += len(chunks) - len(taken)
        for index, (chunk, size) in enumerate(zip(taken, count_tokens(taken), strict=True)):
            items += [work.Item(document.document_id, index, len(chunks), style, chunk, int(size))
                      for style in settings.styles]
    return items, ledger


def choose_documents(documents: Sequence[Document], settings: RewriteSettings) -> list[Document]:
    """The documents that are rewritten, in the order of the selection; the choice does not depend on that order."""
    bound = settings.max_document_tokens
    fitting = [document for document in documents if bound is None or document.num_tokens <= bound]
    if not fitting:
        shortest = min((document.num_tokens for document in documents), default=0)
        raise UserError(f"{settings.documents}: no document to rewrite ({len(documents):,} documents, max_document_"
                        f"tokens = {bound}, the shortest has {shortest:,} tokens)")
    if settings.max_documents is None or len(fitting) <= settings.max_documents:
        return fitting
    ranks = sorted(fitting, key=lambda document: hashlib.sha256(f"{settings.seed}/{document.id}".encode()).digest())
    kept = {document.id for document in ranks[:settings.max_documents]}
    return [document for document in fitting if document.id in kept]


def token_counter(tokenizer: Path) -> CountTokens:
    """A function that counts the tokens of texts by the tokenizer of a folder, without special tokens around them."""
    import pyarrow as pa

    from megatron_ext.data.tokenizers import load_tokenizer

    encoder = load_tokenizer(tokenizer).encoder
    return lambda texts: encoder.encode(pa.array(texts, pa.string())).lengths.tolist()


def _counts(summary: dict[str, Any]) -> dict[str, Any]:
    rewrites = summary["rewrites"]
    return {
        "documents": rewrites["complete"] + rewrites["partial"],
        "tokens": rewrites["tokens"],
        "chunks": {style: {key: values[key] for key in ("num_chunks", "num_survived", "reasons")}
                   for style, values in summary["styles"].items()},
    }
