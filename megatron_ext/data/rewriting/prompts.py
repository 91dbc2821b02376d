"""Prompts: one file a style in a language's pack. The first line is `version: N`, the rest the rewriter's instruction.

A custom style is a file `<style>.md` in a folder of one's own. A change of wording asks for a new version number, which
is kept with every rewrite; the hash of the text enters the artifact's request in any case.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from megatron_ext.data.rewriting.checking.lexicon import load_lexicon
from megatron_ext.data.rewriting.packs import DEFAULT_LANGUAGE, PROMPTS_FOLDER, pack_file
from megatron_ext.errors import UserError

Order = Literal["document_first", "instruction_first"]
_FILE = re.compile(r"version:[ \t]*(\d+)[ \t]*\n(.+)", re.DOTALL)
_STYLE_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")


@dataclass(frozen=True)
class Prompt:
    """The instruction of one style."""

    style: str
    version: int
    instruction: str
    tag: str
    """Stands around the source."""

    @property
    def sha256(self) -> str:
        """Hash of the instruction."""
        return hashlib.sha256(self.instruction.encode()).hexdigest()

    def render(self, text: str, order: Order) -> str:
        """What the rewriter is told. With the document first, the styles of a chunk share the longest prefix."""
        quoted = f"<{self.tag}>\n{text.strip()}\n</{self.tag}>"
        parts = [quoted, self.instruction] if order == "document_first" else [self.instruction, quoted]
        return "\n\n".join(parts)


def load_prompts(styles: Sequence[str], custom_folder: Path | None = None,
                 language: str = DEFAULT_LANGUAGE) -> list[Prompt]:
    """The prompts of these styles; a file in `custom_folder` wins over the language's own one of the same name.

    Raises UserError for an unknown style (naming the known ones) and for a file without a version line or text.
    """
    files = {file.stem: file for file in sorted(pack_file(language, PROMPTS_FOLDER).glob("*.md"))}
    if custom_folder is not None:
        if not custom_folder.is_dir():
            raise UserError(f"prompts_folder = {custom_folder}: no such folder")
        files |= {file.stem: file for file in sorted(custom_folder.glob("*.md"))}
    unknown = [style for style in styles if style not in files]
    if unknown:
        raise UserError(f"styles: no prompt for {', '.join(unknown)}; there are {', '.join(sorted(files))}. For a style"
                        " of your own put <style>.md in a folder and name it in prompts_folder")
    tag = load_lexicon(language).text_tag
    return [_read_prompt(files[style], tag) for style in styles]


def _read_prompt(file: Path, tag: str) -> Prompt:
    match = _FILE.fullmatch(file.read_text(encoding="utf-8"))
    if not match or not match[2].strip():
        raise UserError(f"{file}: a prompt begins with a line `version: 1`, followed by the instruction")
    if not _STYLE_NAME.fullmatch(file.stem) or file.stem == "original":
        raise UserError(f"{file}: {file.stem!r} cannot name a style (small letters, digits, _ and -; not 'original')")
    return Prompt(style=file.stem, version=int(match[1]), instruction=match[2].strip(), tag=tag)
