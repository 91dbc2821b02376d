"""The settings of the judge of rewrites."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, field_validator, model_validator

from megatron_ext.data.rewriting.engines.interface import Sampling
from megatron_ext.data.rewriting.engines.settings import AskingSettings
from megatron_ext.data.rewriting.judge.form import load_form
from megatron_ext.data.rewriting.packs import DEFAULT_LANGUAGE, is_folder
from megatron_ext.identity import PLACE
from megatron_ext.settings import Place


class JudgeSettings(AskingSettings):
    """Which rewrites a model judges, and how it is asked."""

    rewrites: Annotated[Path, PLACE]
    """Rewrites (artifact) of which a sample is judged."""
    sample: int = Field(200, ge=1)
    """Accepted rewrites of chunks that are judged of each style, chosen by a hash; all, where there are fewer."""
    language: Place = DEFAULT_LANGUAGE
    """Of the texts, and of what the judge is asked: a code (pt, en) or the folder of a pack of one's own."""
    labelled_file: Annotated[Path | None, PLACE] = None
    """JSONL or Parquet with the columns source, text, style, label (good, bad) and perhaps kind, on which the judge's
    own false rates are measured, in place of the language's own set."""
    structured_output: bool = True
    """Engines vllm and openai hold answers to the JSON schema; false for an endpoint that knows no response_format."""
    max_new_tokens: int = Field(768, ge=16)
    """Tokens that an answer may have; a model that reasons first needs more."""
    sampling: Sampling = Sampling(temperature=0.2)
    """How tokens are drawn."""

    @field_validator("language")
    @classmethod
    def _is_known(cls, language: str) -> str:
        load_form(language)
        return language

    @model_validator(mode="after")
    def _labels_can_be_read(self) -> JudgeSettings:
        from megatron_ext.data.rewriting.judge.pairs import labelled_pairs

        labelled_pairs(self.language, self.labelled_file)
        return self

    @property
    def unused_sections(self) -> set[str]:
        """The language, too, where it is a folder: what it holds is part of the request."""
        return super().unused_sections | ({"language"} if is_folder(self.language) else set())
