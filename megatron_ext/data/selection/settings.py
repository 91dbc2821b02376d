"""Settings of the selecting stage."""

from __future__ import annotations

import ast
import keyword
import unicodedata
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from megatron_ext.data.documents import FIELDS
from megatron_ext.data.selection.near_duplicates import NearDuplicates
from megatron_ext.data.selection.rules import parse_rule
from megatron_ext.data.tokenizers import EncoderName
from megatron_ext.identity import LAYOUT, PLACE, WATCHING
from megatron_ext.settings import REPEATS, Place
from megatron_ext.stage import StageSettings

_RESERVED = (*FIELDS, "reason")


class SelectSettings(StageSettings):
    """Settings of the selecting stage."""

    corpus: Annotated[Place | list[Place], PLACE, REPEATS]
    """File, folder or glob pattern of .parquet, .jsonl, .ndjson, .json shards (JSON also as .gz, .zst, …), or several
    of them; a documents artifact; or a data set of the Hugging Face hub, which is streamed: `hf://owner/name`, with
    `?config=…&split=…&revision=…` where needed. Names that begin with _ or . are passed over."""
    tokenizer: Annotated[Path | None, PLACE]
    """Folder of the training tokenizer, which counts the tokens; null: they are not counted, and there is no budget."""
    text_column: str = "text"
    """Column of the text; here and below, `a.b` is the column b of the nested column a."""
    id_column: str | None = "id"
    """Column of the document's id; null, or a row without one: the id is made from the text."""
    scores: dict[str, str] = Field(default_factory=dict)
    """Short name -> score column, e.g. {stem: stem_score, edu: metadata.edu}; the rule uses the short names, the output
    carries them. Numbers, but for columns that the rule compares with text."""
    rule: str | None = None
    """Condition over the scores, e.g. `stem > 2.5 or stem + edu > 4`, `lang == 'pt'`, `lang in ['pt', 'gl']`,
    `edu is null or edu > 2`; null: every document. A document without a score that the rule reads is rejected unless
    the rule asks for `is null`; so is one with NaN."""
    min_chars: int = Field(default=1, ge=0)
    """Shorter documents are rejected; characters."""
    max_chars: int | None = Field(default=None, ge=1)
    """Longer documents are rejected; characters."""
    exact_duplicates: Literal["remove", "report"] = "remove"
    """What to do with documents of the same text; remove: the first in order stays. They are counted in any case."""
    near_duplicates: Literal["off", "report", "remove"] = "off"
    """The same for documents whose words are nearly the same, found by MinHash; off: not looked for."""
    near_duplicate_bands: int = Field(default=14, ge=1, le=256)
    """Bands of a MinHash signature: more find less similar documents."""
    near_duplicate_band_rows: int = Field(default=8, ge=1, le=256)
    """Values in a band: more ask for more similar documents."""
    test_items: Annotated[Path | None, PLACE] = None
    """File or folder of .jsonl test items (tools.poeta_items writes PoETa V2's) to look for in the documents."""
    contaminated: Literal["report", "remove"] = "report"
    """What to do with documents that share an n-gram with a test item."""
    ngram: int = Field(default=13, ge=1)
    """Words in such an n-gram."""
    short_ngram: int = Field(default=8, ge=1)
    """The same for test items of fewer words; items of fewer than these are not looked for."""
    budget_tokens: int | None = Field(default=None, gt=0)
    """Tokens to select, end-of-document tokens not counted; null: all that passes."""
    on_shortage: Literal["error", "allow"] = "error"
    """What to do when the corpus has fewer tokens than the budget; allow: take all, and record what is missing and how
    many epochs would make up for it."""
    keep_rejected: bool = False
    """Whether rejected documents are kept, with their reason, in `rejected/`."""
    seed: int = Field(default=0, ge=0, lt=2**64)
    """Decides which documents are taken when more pass than the budget needs."""
    encoder: Annotated[EncoderName, LAYOUT] = "auto"
    """What encodes; auto: the fastest with the ids of `tokenizers` (where there is a tokenizer.json) or
    `sentencepiece`."""
    keep_measures: Annotated[bool, WATCHING] = True
    """Keep what is counted of each shard, under the hash of its bytes, in `.measures` beside the output: another rule,
    budget or a grown corpus then costs only what is new. (Nothing is kept where nothing is counted, and of near
    duplicates, data sets of the hub and parts.)"""
    workers: Annotated[int | None, WATCHING] = Field(default=None, ge=1)
    """Processes; default: one a core. Does not change the result."""

    @property
    def near(self) -> NearDuplicates | None:
        """How near duplicates are looked for."""
        if self.near_duplicates == "off":
            return None
        return NearDuplicates(self.near_duplicate_bands, self.near_duplicate_band_rows)

    @field_validator("corpus", mode="before")
    @classmethod
    def _corpus_is_a_place(cls, corpus: Any) -> Any:
        return list(map(str, corpus)) if isinstance(corpus, list | tuple) else \
            str(corpus) if isinstance(corpus, Path) else corpus

    @field_validator("scores")
    @classmethod
    def _names_are_usable(cls, scores: dict[str, str]) -> dict[str, str]:
        scores = {unicodedata.normalize("NFKC", name): column for name, column in scores.items()}  # as rules are read
        for name in scores:
            if name in ("null", "None"):
                raise ValueError(f"{name!r} cannot be the name of a score: rules ask `is null`")
            if not name.isidentifier() or keyword.iskeyword(name) or name in _RESERVED:
                raise ValueError(f"{name!r} cannot be the name of a score: use a word that is not "
                                 f"{', '.join(_RESERVED)}")
        return scores

    @field_validator("rule")
    @classmethod
    def _rule_is_one(cls, rule: str | None, info: ValidationInfo) -> str | None:
        if rule is not None and "scores" in info.data:
            parse_rule(rule, info.data["scores"])
            return ast.unparse(ast.parse(rule.strip(), mode="eval"))  # one rule has one text, whatever its spaces
        return rule

    @model_validator(mode="after")
    def _settings_fit_together(self) -> SelectSettings:
        if self.tokenizer is None and self.budget_tokens is not None:
            raise ValueError("budget_tokens needs a tokenizer, which counts the tokens")
        if self.max_chars is not None and self.max_chars < self.min_chars:
            raise ValueError(f"max_chars {self.max_chars} is below min_chars {self.min_chars}: no document would pass")
        if self.short_ngram > self.ngram:
            raise ValueError("short_ngram must not be larger than ngram")
        if self.near_duplicates == "remove" and self.exact_duplicates == "report":
            raise ValueError("near_duplicates=remove removes equal texts too: exact_duplicates has to be remove")
        if self.contaminated == "remove" and self.test_items is None:
            raise ValueError("contaminated=remove needs test_items")
        return self
