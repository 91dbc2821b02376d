"""The training tokenizer: a folder, opened, with its encoder and the facts that the stages need.

Which ids a text gets is stated in `megatron_ext.data.encoders`; which encoder computes them, in `encoder_choice`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from megatron_ext.artifacts import hash_file
from megatron_ext.data.encoder_choice import VOCABULARY_FILES, EncoderChoice, EncoderName, choose_encoder
from megatron_ext.data.encoders import TOKENIZER_CONFIG_FILES, Encoder
from megatron_ext.errors import UserError

__all__ = ["EncoderName", "TrainingTokenizer", "load_tokenizer"]


@dataclass(frozen=True)
class TrainingTokenizer:
    """A tokenizer folder, opened."""

    folder: Path
    choice: EncoderChoice
    """The encoder, and how it came to be taken."""
    eod_token_id: int
    """The tokenizer's end-of-sequence id, which ends documents."""
    sha256: str
    """Hash of the vocabulary file (tokenizer.json or tokenizer.model)."""
    files: dict[str, str]
    """Name -> sha256 of each tokenizer file of the folder."""

    @property
    def encoder(self) -> Encoder:
        """What turns texts into ids."""
        return self.choice.encoder

    @property
    def reference(self) -> str:
        """The library whose ids these are, whichever encoder computes them: what identifies a result."""
        return self.choice.reference

    @property
    def vocab_size(self) -> int:
        """One more than the largest id, added tokens included."""
        return self.encoder.vocab_size

    def bos_token_id(self) -> int:
        """The tokenizer's begin-of-sequence id. Raises UserError when it has none."""
        return self.choice.library.bos_token_id()

    @cached_property
    def special_token_ids(self) -> dict[str, int]:
        """Special tokens, as texts may hold them, and their ids."""
        return self.choice.library.special_token_ids()

    @property
    def vocabulary_path(self) -> Path:
        """The file that decides the ids."""
        return self.folder / VOCABULARY_FILES[self.reference]


_MAX_OPEN = 4
_open: dict[tuple[Path, str], TrainingTokenizer] = {}


def load_tokenizer(folder: Path, encoder: EncoderName = "auto", is_tried: bool = False) -> TrainingTokenizer:
    """Open a tokenizer folder, once in a process; `choose_encoder` says what `encoder` and `is_tried` mean.

    Raises UserError when the needed file is missing or damaged, or names no end-of-sequence token.
    """
    if (folder, encoder) not in _open:
        if len(_open) >= _MAX_OPEN:
            _open.clear()
        tokenizer = _load(folder, encoder, is_tried)
        _open[folder, encoder] = _open[folder, tokenizer.encoder.name] = tokenizer  # what `auto` took has a name, too
    return _open[folder, encoder]


def _load(folder: Path, encoder: EncoderName, is_tried: bool) -> TrainingTokenizer:
    if not folder.is_dir():
        raise UserError(f"tokenizer {folder} is not a folder")
    choice = choose_encoder(folder, encoder, is_tried)
    path = folder / VOCABULARY_FILES[choice.reference]
    names = [path.name, *(other for other in TOKENIZER_CONFIG_FILES if (folder / other).is_file())]
    files = {file: hash_file(folder / file) for file in names}
    return TrainingTokenizer(folder, choice, choice.encoder.eod_token_id(), files[path.name], files)
