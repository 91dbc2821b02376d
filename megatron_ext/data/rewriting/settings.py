"""The settings of rewriting.

Most decide the bytes of the rewrites. Those that do not (addresses, numbers of processes, bounds at which a run stops)
say so, and carry a role (megatron_ext/identity.py) that leaves them out of what an artifact is asked for with.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from megatron_ext.data.rewriting.engines.settings import AskingSettings
from megatron_ext.data.rewriting.packs import DEFAULT_LANGUAGE, is_folder
from megatron_ext.data.rewriting.prompts import Order, load_prompts
from megatron_ext.identity import PLACE, WATCHING
from megatron_ext.settings import Place

Count = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]
FailedChunks = Literal["survivors", "drop_document"]


class RewriteSettings(AskingSettings):
    """How a selection is rewritten."""

    documents: Annotated[Path, PLACE]
    """Selection (artifact) whose documents are rewritten."""
    tokenizer: Annotated[Path, PLACE]
    """Folder of the training tokenizer, which counts tokens."""
    language: Place = DEFAULT_LANGUAGE
    """Of the texts: a code (pt, en) or the folder of a pack of one's own. Its prompts and checks are used."""
    styles: list[str] = Field(["easy", "medium", "hard", "qa"], min_length=1)
    """Styles to write; each has a prompt file."""
    prompts_folder: Annotated[Path | None, PLACE] = None
    """Folder with prompt files of one's own, `<style>.md`; they win over the built-in ones."""
    thresholds_file: Annotated[Path | None, PLACE] = None
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
    failed_chunks: FailedChunks = "survivors"
    """When a chunk failed its checks: keep the document's other chunks, or drop_document."""
    context_tokens: Count | None = None
    """Tokens that the model holds, where its folder does not tell (openai); longer chunks are split further."""
    max_new_tokens_ratio: float = Field(2.0, gt=0)
    """Tokens that a completion may have, at most, for each token of its source."""
    min_new_tokens: Count = 32
    """The same bound is never below this, for short sources."""
    window_tokens: Count = 2_000_000
    """Work is divided into windows of whole documents with so many source tokens: longest first within a window, shared
    by parts window by window, held in memory at most five at a time."""
    check_workers: Annotated[int | None, WATCHING] = Field(None, ge=0)
    """Processes that split documents and check answers beside the engine; none: 2, and 0 for engine transformers.
    Decides no byte."""
    min_survived_fraction: Annotated[Fraction, WATCHING] = 0.05
    """The run stops when fewer than this share of chunks pass the checks: of any style after its first 100 first
    answers, and of all at the end; 0: never. Decides no byte."""

    @model_validator(mode="after")
    def _styles_are_there(self) -> RewriteSettings:
        from megatron_ext.data.rewriting.checking.checks import load_thresholds

        load_prompts(self.styles, self.prompts_folder, self.language)
        load_thresholds(self.styles, self.thresholds_file, self.language)
        return self

    @property
    def unused_sections(self) -> set[str]:
        """The language, too, where it is the one that older requests do not name, or a folder, told by its content."""
        is_told = self.language == DEFAULT_LANGUAGE or is_folder(self.language)
        return super().unused_sections | ({"language"} if is_told else set())

    @property
    def num_helpers(self) -> int:
        """Processes beside the engine."""
        return self.check_workers if self.check_workers is not None else 0 if self.engine == "transformers" else 2
