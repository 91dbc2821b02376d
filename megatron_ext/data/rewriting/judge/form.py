"""What the judge is asked in a language, and how its answer is laid out: `languages/<code>/judge.yaml`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

from megatron_ext.artifacts import hash_json
from megatron_ext.data.rewriting.packs import FORM_FILE, check_keys, pack_file
from megatron_ext.settings_file import read_file

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


@cache
def load_form(language: str) -> Form:
    """The form of a language: a code or a folder. Raises UserError for one that is not there, and for wrong keys."""
    file = pack_file(language, FORM_FILE)
    values = read_file(file)
    check_keys(values, Form.__dataclass_fields__.keys(), file)
    check_keys(values["findings"], FINDINGS, file)
    return Form(**values)
