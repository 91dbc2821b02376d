"""Encoders: what turns texts into ids, behind one small interface.

Two are references, the libraries whose ids define the others':

- `tokenizers` (`tokenizer.json`): the Hugging Face fast tokenizer without added BOS/EOS. A literal special token in a
  text (`<|endoftext|>`) becomes the special id, as it does in Megatron-LM's HuggingFaceTokenizer.
- `sentencepiece` (`tokenizer.model`): SentencePiece itself, as Megatron-LM's GPTSentencePieceTokenizer uses it. A
  literal `</s>` in a text is ordinary text; neither BOS nor EOS is added.

The others are faster and have the same ids for some tokenizers, which `encoder_choice` finds out: `native` (see
`native.encoder`) and `gigatoken`.
"""

from __future__ import annotations

import json
import os
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from megatron_ext.data.long_texts import PIECE_CHARS, pieces_of
from megatron_ext.errors import UserError

TOKENIZER_CONFIG_FILES = ("tokenizer_config.json", "special_tokens_map.json")
_TEXTS_TOGETHER = 256  # what the libraries make of a text takes many times its memory
_BYTES_TOGETHER = 4 * 2**20


@dataclass(frozen=True)
class Encoded:
    """Ids of several texts, end to end."""

    ids: np.ndarray  # an integer type [num_tokens]
    lengths: np.ndarray  # int64 [num_texts], ids of each text


class EncoderRefusedError(Exception):
    """An encoder cannot serve a tokenizer, or is not installed; the message says why. Another one has to."""


class Encoder(Protocol):
    """What turns texts into ids, and back."""

    name: str
    vocab_size: int
    """One more than the largest id, added tokens included: the number of ids, unless the vocabulary has holes. The
    integer type follows from it, as Megatron-LM's does from the number."""

    def encode(self, texts: pa.Array, end_id: int | None = None) -> Encoded:
        """Encode an Arrow string array without nulls; no BOS, no EOS, but `end_id` after every text that has ids."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, special tokens shown."""

    def eod_token_id(self) -> int:
        """The tokenizer's end-of-sequence id. Raises UserError when it has none."""


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
        self.vocab_size = 1 + max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)

    def encode(self, texts: pa.Array, end_id: int | None = None) -> Encoded:
        """See Encoder."""
        return _join(_encode_in_groups(texts, self._encode), end_id)

    def _encode(self, texts: list[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    def decode(self, ids: Sequence[int]) -> str:
        """See Encoder."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=False)

    def eod_token_id(self) -> int:
        """The id of the `eos_token` that tokenizer_config.json or special_tokens_map.json names."""
        return self._named_token("eos_token", "has to end documents")

    def bos_token_id(self) -> int:
        """The same of the `bos_token`."""
        return self._named_token("bos_token", "has to begin documents (prepend_bos)")

    def added_tokens(self) -> list[str]:
        """The added tokens as texts hold them."""
        return [token.content for token in self._tokenizer.get_added_tokens_decoder().values()]

    def special_token_ids(self) -> dict[str, int]:
        """The special tokens, which a text that holds them literally becomes."""
        return {token.content: token_id for token_id, token in self._tokenizer.get_added_tokens_decoder().items()
                if token.special}

    def _named_token(self, key: str, purpose: str) -> int:
        for name in TOKENIZER_CONFIG_FILES:
            path = self._folder / name
            token = json.loads(path.read_text(encoding="utf-8")).get(key) if path.is_file() else None
            token = token.get("content") if isinstance(token, dict) else token
            if token is None:
                continue
            token_id = self._tokenizer.token_to_id(token)
            if token_id is None:
                raise UserError(f"{path} names the {key} {token!r}, which is not in the vocabulary")
            return token_id
        raise UserError(f"{self._folder}: neither {' nor '.join(TOKENIZER_CONFIG_FILES)} names "
                        f"{'an' if key[0] in 'aeiou' else 'a'} {key}, which {purpose}")


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

    def encode(self, texts: pa.Array, end_id: int | None = None) -> Encoded:
        """See Encoder."""
        return _join(_encode_in_groups(texts, self._encode), end_id)

    def _encode(self, texts: list[str]) -> list[list[int]]:
        return self._processor.encode(texts, out_type=int, num_threads=1)

    def decode(self, ids: Sequence[int]) -> str:
        """See Encoder."""
        return self._processor.decode([int(token) for token in ids])

    def eod_token_id(self) -> int:
        """The model's `</s>`."""
        token_id = self._processor.eos_id()
        if token_id < 0:
            raise UserError(f"{self._path} has no end-of-sequence piece, which ends documents")
        return token_id

    def bos_token_id(self) -> int:
        """The model's `<s>`."""
        token_id = self._processor.bos_id()
        if token_id < 0:
            raise UserError(f"{self._path} has no begin-of-sequence piece, which has to begin documents (prepend_bos)")
        return token_id

    def added_tokens(self) -> list[str]:
        """The control and unknown pieces, which texts may hold literally."""
        return list(self.special_token_ids())

    def special_token_ids(self) -> dict[str, int]:
        """The same with their ids; a text that holds one literally does not become it."""
        return {self._processor.id_to_piece(i): i for i in range(self.vocab_size)
                if self._processor.is_control(i) or self._processor.is_unknown(i)}

    def serialized_model(self) -> bytes:
        """The model as the protocol buffer message ModelProto."""
        return self._processor.serialized_model_proto()


Reference = HuggingFaceEncoder | SentencePieceEncoder


class GigatokenEncoder:
    """The `gigatoken` library, where it is installed, on a tokenizer.json or tokenizer.model.

    Raises EncoderRefusedError when it is not there or cannot read the file. Whether its ids are the reference's has to
    be tried: it takes a literal `</s>` for the special token, which sentencepiece does not.
    """

    name = "gigatoken"

    def __init__(self, path: Path, reference: Reference) -> None:
        try:
            import awkward
            import gigatoken
        except ImportError:
            raise EncoderRefusedError("it is not installed (pip install gigatoken==0.10.0)") from None
        self._from_arrow = awkward.from_arrow
        load = gigatoken.Tokenizer.from_sentencepiece if path.suffix == ".model" else gigatoken.Tokenizer.from_json
        try:
            self._tokenizer = load(path.read_bytes())
        except Exception as error:  # the library names no exceptions of its own
            reason = str(error).partition("\n")[0]
            raise EncoderRefusedError(f"it cannot read {path.name}: {reason}") from None
        self.vocab_size = reference.vocab_size
        self.decode, self.eod_token_id = reference.decode, reference.eod_token_id

    def encode(self, texts: pa.Array, end_id: int | None = None) -> Encoded:
        """See Encoder."""
        if not len(texts):
            return _join([], end_id)
        rows = self._from_arrow(texts.cast(pa.large_string()))  # the library reads 64-bit offsets only
        rows = self._tokenizer.encode_batch(rows, parallel=False).layout.to_ListOffsetArray64(True)
        offsets = np.asarray(rows.offsets)
        ids = np.asarray(rows.content.data)[:offsets[-1]]
        lengths = np.diff(offsets)
        if end_id is None:
            return Encoded(ids, lengths)
        ends = offsets[1:][lengths > 0]
        return Encoded(np.insert(ids, ends, end_id), lengths + (lengths > 0))


def grouped(texts: pa.Array, max_rows: int = _TEXTS_TOGETHER, max_bytes: int = _BYTES_TOGETHER) -> Iterator[pa.Array]:
    """Slices of so many texts, or bytes of text unless one alone has more; the texts hold no nulls."""
    if pa.types.is_string_view(texts.type):  # whose lengths arrow does not tell
        texts = texts.cast(pa.large_string())
    ends = np.cumsum(pc.binary_length(texts).to_numpy(zero_copy_only=False), dtype=np.int64)
    start = 0
    while start < len(texts):
        before = int(ends[start - 1]) if start else 0
        stop = int(np.searchsorted(ends, before + max_bytes, side="right"))
        stop = min(max(stop, start + 1), start + max_rows)
        yield texts.slice(start, stop - start)
        start = stop


def _encode_in_groups(texts: pa.Array,
                      encode: Callable[[list[str]], list[list[int]]]) -> Iterator[list[int] | array[int]]:
    """The ids of each text, by a library that takes lists; a long text piece by piece."""
    for group in grouped(texts):
        values = group.to_pylist()
        if len(values) == 1 and len(values[0]) > 2 * PIECE_CHARS:
            ids = array("i")  # a tenth of a list's memory
            for piece in pieces_of(values[0], lambda text: encode([text])[0]):
                ids.fromlist(encode([piece])[0])
            yield ids
        else:
            yield from encode(values)


def with_begin(encoded: Encoded, begin_id: int) -> Encoded:
    """The same with `begin_id` before every text that has ids."""
    starts = (np.cumsum(encoded.lengths) - encoded.lengths)[encoded.lengths > 0]
    return Encoded(np.insert(encoded.ids, starts, begin_id), encoded.lengths + (encoded.lengths > 0))


def _join(ids: Iterable[list[int] | array[int]], end_id: int | None) -> Encoded:
    flat, lengths = array("i"), array("q")  # which take lists several times faster than numpy does
    for one in ids:
        start = len(flat)
        flat.fromlist(one) if isinstance(one, list) else flat.extend(one)
        if one and end_id is not None:
            flat.append(end_id)
        lengths.append(len(flat) - start)
    return Encoded(np.asarray(flat), np.asarray(lengths))
