"""Whether two folders with config and tokenizer files describe one model, told in what they differ."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

from megatron_ext.data.encoder_choice import VOCABULARY_FILES
from megatron_ext.hashing import hash_file
from megatron_ext.model.hf_config import Architecture, read_architecture


def unlike(mine: Path, theirs: Path) -> Iterator[str]:
    """In what the second differs from the first: architecture, tokenizer; not the type that weights are stored in.

    Raises UserError when one of them cannot be read.
    """
    first, second = read_architecture(mine), read_architecture(theirs)
    names = [field.name for field in fields(Architecture) if field.name != "dtype"]
    values = {name: (getattr(second, name), getattr(first, name)) for name in names}
    if differing := [f"{name} {its}, not {our}" for name, (its, our) in values.items() if its != our]:
        yield f"another architecture ({', '.join(differing)})"
    for file in VOCABULARY_FILES.values():
        if (mine / file).is_file() and (theirs / file).is_file() and hash_file(mine / file) != hash_file(theirs / file):
            yield f"another {file}"
