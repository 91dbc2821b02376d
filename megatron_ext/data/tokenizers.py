"""The training tokenizer: encoders behind one small interface, and the facts about a vocabulary that stages need.

Which reference each encoder matches, id for id:

- `tokenizers` (`tokenizer.json`): the Hugging Face fast tokenizer without added BOS/EOS. A literal special token in a
  text (`<|endoftext|>`) becomes the special id, as it does in Megatron-LM's HuggingFaceTokenizer.
- `sentencepiece` (`tokenizer.model`): SentencePiece itself, as Megatron-LM's GPTSentencePieceTokenizer uses it. A
  literal `</s>` in a text is ordinary text; neither BOS nor EOS is added.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import pyarrow as pa

from megatron_ext.artifacts import hash_file
from megatron_ext.errors import UserError

EncoderName = Literal["auto", "tokenizers", "sentencepiece"]
_VOCABULARY_FILES = {"tokenizers": "tokenizer.json", "sentencepiece": "tokenizer.model"}
_OTHER_FILES = ("tokenizer_config.json", "special_tokens_map.json")


@dataclass(frozen=True)
class Encoded:
    """Ids of several texts, end to end."""

    ids: np.ndarray  # int32 [num_tokens]
    lengths: np.ndarray  # int64 [num_texts], tokens of each text


class Encoder(Protocol):
    """What turns texts into ids."""

    name: str
    vocab_size: int
    """Number of ids, added tokens included; what Megatron-LM chooses the integer type by."""

    def encode(self, texts: pa.Array) -> Encoded:
        """Encode an Arrow string array without nulls; no BOS, no EOS."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, special tokens shown."""


@dataclass(frozen=True)
class TrainingTokenizer:
    """A tokenizer folder, opened."""

    folder: Path
    encoder: Encoder
    eod_token_id: int
    """The tokenizer's end-of-sequence id, which ends documents."""
    sha256: str
    """Hash of the vocabulary file (tokenizer.json or tokenizer.model)."""
    files: dict[str, str]
    """Name -> sha256 of each tokenizer file of the folder."""

    @property
    def vocab_size(self) -> int:
        """Number of ids, added tokens included."""
        return self.encoder.vocab_size

    @property
    def vocabulary_path(self) -> Path:
        """The file that decides the ids."""
        return self.folder / _VOCABULARY_FILES[self.encoder.name]


@lru_cache(maxsize=4)
def load_tokenizer(folder: Path, encoder: EncoderName = "auto") -> TrainingTokenizer:
    """Open a tokenizer folder. `auto` takes tokenizer.json where there is one, else tokenizer.model.

    Raises UserError when the needed file is missing or damaged, or names no end-of-sequence token.
    """
    if not folder.is_dir():
        raise UserError(f"tokenizer {folder} is not a folder")
    name = _choose_encoder(folder, encoder)
    path = folder / _VOCABULARY_FILES[name]
    opened = HuggingFaceEncoder(path) if name == "tokenizers" else SentencePieceEncoder(path)
    names = [path.name, *(other for other in _OTHER_FILES if (folder / other).is_file())]
    files = {file: hash_file(folder / file) for file in names}
    return TrainingTokenizer(folder, opened, opened.eod_token_id(), files[path.name], files)


class HuggingFaceEncoder:
    """The `tokenizers` library on a tokenizer.json."""

    name = "tokenizers"

    def __init__(self, path: Path) -> None:
        # Read at each call by the library; a stage that wants more cores takes more processes.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        from tokenizers import Tokenizer

        self._folder = path.parent
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise UserError(f"{path} cannot be read as a Hugging Face fast tokenizer: {error}") from None
        self._tokenizer.no_truncation()  # both may be stored in the file, and would silently change documents
        self._tokenizer.no_padding()
        self.vocab_size = self._tokenizer.get_vocab_size(with_added_tokens=True)

    def encode(self, texts: pa.Array) -> Encoded:
        """See Encoder."""
        encodings = self._tokenizer.encode_batch_fast(texts.to_pylist(), add_special_tokens=False)
        return _join([encoding.ids for encoding in encodings])

    def decode(self, ids: Sequence[int]) -> str:
        """See Encoder."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=False)

    def eod_token_id(self) -> int:
        """The id of the `eos_token` that tokenizer_config.json or special_tokens_map.json names."""
        for name in _OTHER_FILES:
            path = self._folder / name
            token = json.loads(path.read_text(encoding="utf-8")).get("eos_token") if path.is_file() else None
            token = token.get("content") if isinstance(token, dict) else token
            if token is None:
                continue
            token_id = self._tokenizer.token_to_id(token)
            if token_id is None:
                raise UserError(f"{path} names the eos_token {token!r}, which is not in the vocabulary")
            return token_id
        raise UserError(f"{self._folder}: neither {' nor '.join(_OTHER_FILES)} names an eos_token, which has to end "
                        "documents")


class SentencePieceEncoder:
    """The `sentencepiece` library on a tokenizer.model."""

    name = "sentencepiece"

    def __init__(self, path: Path) -> None:
        import sentencepiece

        self._path = path
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
        except (OSError, RuntimeError) as error:
            raise UserError(f"{path} cannot be read as a SentencePiece model: {error}") from None
        self.vocab_size = self._processor.get_piece_size()

    def encode(self, texts: pa.Array) -> Encoded:
        """See Encoder."""
        return _join(self._processor.encode(texts.to_pylist(), out_type=int, num_threads=1))

    def decode(self, ids: Sequence[int]) -> str:
        """See Encoder."""
        return self._processor.decode([int(token) for token in ids])

    def eod_token_id(self) -> int:
        """The model's `</s>`."""
        token_id = self._processor.eos_id()
        if token_id < 0:
            raise UserError(f"{self._path} has no end-of-sequence piece, which ends documents")
        return token_id


def _join(ids: Sequence[Sequence[int]]) -> Encoded:
    lengths = np.fromiter(map(len, ids), dtype=np.int64, count=len(ids))
    flat = np.empty(int(lengths.sum()), dtype=np.int32)
    start = 0
    for one in ids:
        flat[start:start + len(one)] = one
        start += len(one)
    return Encoded(flat, lengths)


def _choose_encoder(folder: Path, encoder: EncoderName) -> str:
    names = list(_VOCABULARY_FILES) if encoder == "auto" else [encoder]
    for name in names:
        if (folder / _VOCABULARY_FILES[name]).is_file():
            return name
    wanted = " nor ".join(_VOCABULARY_FILES[name] for name in names)
    raise UserError(f"{folder} holds no {wanted}, which encoder {encoder!r} reads; it holds: "
                    f"{', '.join(sorted(path.name for path in folder.iterdir())) or 'nothing'}")
