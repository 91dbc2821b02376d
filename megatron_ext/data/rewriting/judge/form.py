"""What the judge is asked in a language, and how its answer is laid out: `languages/<code>/judge.yaml`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import yaml

from megatron_ext.artifacts import hash_json
from megatron_ext.data.rewriting.checking.lexicon import LANGUAGES_FOLDER
from megatron_ext.errors import UserError

FORM_FILE, LABELLED_FILE = "judge.yaml", "judge_labelled.jsonl"
FINDINGS = ("unsupported", "missing", "contradicted")
"""What the judge lists: statements of the rewrite without support, of the source left out, and contradicted ones."""
MAX_ITEMS = 5
"""Statements of a list, at most, where an engine holds answers to the schema."""


@dataclass(frozen=True)
class Form:
    """The question in one language and the names in the answer, a JSON object of three lists and a verdict."""

    version: int
    source_tag: str
    text_tag: str
    findings: dict[str, str]
    """Of FINDINGS -> name of its list in the answer."""
    verdict: str
    """Name of the verdict in the answer."""
    faithful: str
    """The verdict if all lists are empty."""
    unfaithful: str
    """The verdict if one is not."""
    instruction: str
    """Stands before the texts."""
    reminder: str
    """Stands after them."""

    @property
    def identity(self) -> dict[str, Any]:
        """Version and hash, which decide what is answered."""
        return {"version": self.version, "sha256": hash_json(vars(self))}

    @property
    def schema(self) -> dict[str, Any]:
        """The JSON schema of an answer."""
        statements = {"type": "array", "items": {"type": "string"}, "maxItems": MAX_ITEMS}
        properties = {self.findings[name]: statements for name in FINDINGS} | {
            self.verdict: {"type": "string", "enum": [self.faithful, self.unfaithful]}}
        return {"type": "object", "properties": properties, "required": list(properties),
                "additionalProperties": False}

    def render(self, source: str, text: str) -> str:
        """What the judge is told of a pair. The instruction, which all pairs share, comes first."""
        quoted = [f"<{tag}>\n{content.strip()}\n</{tag}>"
                  for tag, content in ((self.source_tag, source), (self.text_tag, text))]
        return "\n\n".join([self.instruction.strip(), *quoted, self.reminder.strip()])


def judge_languages() -> list[str]:
    """Codes of the languages that a judge can be asked in."""
    return sorted(file.parent.name for file in LANGUAGES_FOLDER.glob(f"*/{FORM_FILE}"))


@cache
def load_form(language: str) -> Form:
    """The form of a language (ISO 639-1). Raises UserError for one that is not there."""
    if language not in judge_languages():
        raise UserError(f"language = {language!r}: a judge can be asked in {', '.join(judge_languages())} alone")
    return Form(**yaml.safe_load((LANGUAGES_FOLDER / language / FORM_FILE).read_text(encoding="utf-8")))
