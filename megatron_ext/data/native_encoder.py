"""The native encoder's Python side: reads a SentencePiece model, refuses what it cannot do exactly, feeds Arrow arrays.

The ids are those of the sentencepiece library. `sentencepiece_bpe.cpp` says how it is done and what it rests on; the
conditions are checked here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from megatron_ext.data.encoders import Encoded, EncoderRefusedError, SentencePieceEncoder
from megatron_ext.data.indexed import token_dtype
from megatron_ext.data.native.build import NativeUnavailableError, load_extension
from megatron_ext.errors import UserError

_SPACE = "▁"


@dataclass(frozen=True)
class _Vocabulary:
    """A SentencePiece BPE model as the extension takes it; a space stands for "▁"."""

    pieces: dict[int, tuple[bytes, float]]
    """Id -> piece and score, of the pieces that merges make."""
    symbols: dict[int, bytes]
    """Id -> user-defined piece: cut out of a text before anything else."""
    byte_ids: list[int]
    """Byte -> id, for characters without a piece."""
    add_dummy_prefix: bool
    """Whether a text gets a leading space."""


class NativeEncoder:
    """SentencePiece BPE by the compiled extension.

    Raises EncoderRefusedError when the extension is not there, or the model is of a kind that it does not do exactly.
    """

    name = "native"

    def __init__(self, path: Path, reference: SentencePieceEncoder | None = None) -> None:
        reference = reference or SentencePieceEncoder(path)
        try:
            extension = load_extension()
        except NativeUnavailableError as error:
            raise EncoderRefusedError(str(error)) from None
        vocabulary = _read_vocabulary(reference.serialized_model())
        self.vocab_size = reference.vocab_size
        self.decode, self.eod_token_id = reference.decode, reference.eod_token_id
        self._dtype = token_dtype(self.vocab_size)
        kind = extension.Encoder16 if self._dtype.itemsize == 2 else extension.Encoder32
        self._encoder = kind(vocabulary.pieces, vocabulary.symbols, vocabulary.byte_ids, vocabulary.add_dummy_prefix)
        self._padding = extension.padding

    def encode(self, texts: pa.Array, end_id: int | None = None) -> Encoded:
        """See Encoder. Raises UserError for a text that is not UTF-8."""
        if not pa.types.is_string(texts.type) and not pa.types.is_large_string(texts.type):
            texts = texts.cast(pa.large_string())
        _, offsets, data = texts.buffers()
        lengths = np.zeros(len(texts), dtype=np.int64)
        if not len(texts) or data is None:
            return Encoded(np.empty(0, dtype=self._dtype), lengths)
        bounds = np.frombuffer(offsets, dtype=np.int32 if pa.types.is_string(texts.type) else np.int64)
        bounds = bounds[texts.offset:texts.offset + len(texts) + 1].astype(np.int64)
        # A token stands for at least one byte; a text has a leading space and an end_id more than its bytes.
        ids = np.empty(int(bounds[-1] - bounds[0]) + 2 * len(texts) + self._padding, dtype=self._dtype)
        try:
            num_ids = self._encoder.encode(data, bounds, ids, lengths, -1 if end_id is None else end_id)
        except ValueError as error:
            raise UserError(f"a batch of {len(texts)} texts cannot be encoded: {error}") from None
        return Encoded(ids[:num_ids], lengths)


def _read_vocabulary(serialized_model: bytes) -> _Vocabulary:
    from sentencepiece import sentencepiece_model_pb2 as protobuf

    model = protobuf.ModelProto.FromString(serialized_model)
    kind = protobuf.ModelProto.SentencePiece
    of_kind: dict[int, dict[int, str]] = {}
    for token_id, piece in enumerate(model.pieces):
        of_kind.setdefault(piece.type, {})[token_id] = piece.piece
    normal, symbols = of_kind.get(kind.NORMAL, {}), of_kind.get(kind.USER_DEFINED, {})
    reserved = [of_kind.get(each, {}) for each in (kind.CONTROL, kind.UNKNOWN, kind.BYTE)]
    problems = [*_problems_of_settings(model), *_problems_of_pieces(normal, symbols)]
    if kind.UNUSED in of_kind:
        problems.append("it has unused pieces")
    if any(len(piece) == 1 for pieces in reserved for piece in pieces.values()):
        problems.append("a special piece is a single character, which texts hold too")
    if problems:
        raise EncoderRefusedError(f"the model is of another kind: {problems[0]}")
    byte_ids = {int(piece[3:5], 16): token_id for token_id, piece in of_kind.get(kind.BYTE, {}).items()}
    return _Vocabulary(
        pieces={i: (_with_spaces(piece), model.pieces[i].score) for i, piece in normal.items()},
        symbols={i: _with_spaces(piece) for i, piece in symbols.items()},
        byte_ids=[byte_ids[byte] for byte in range(256)],
        add_dummy_prefix=model.normalizer_spec.add_dummy_prefix,
    )


def _problems_of_settings(model) -> Iterator[str]:  # noqa: ANN001 (a protobuf class made at run time)
    trainer, normalizer = model.trainer_spec, model.normalizer_spec
    if trainer.model_type != trainer.BPE:
        yield "it is not byte-pair encoding"
    if not trainer.byte_fallback:
        yield "it has no byte fallback"
    if trainer.treat_whitespace_as_suffix:
        yield "words end with their space"
    if normalizer.precompiled_charsmap:
        yield f"its normaliser {normalizer.name!r} changes characters"
    if normalizer.remove_extra_whitespaces or not normalizer.escape_whitespaces:
        yield "its normaliser changes spaces"


def _problems_of_pieces(normal: dict[int, str], symbols: dict[int, str]) -> Iterator[str]:
    """Why the extension's rules do not hold for this vocabulary."""
    known = {*normal.values(), *symbols.values()}
    if _SPACE not in known:
        yield "no piece stands for a space"
    for piece in known:
        if " " in piece:
            yield f"piece {piece!r} holds a space that no text can match"
    for piece in normal.values():
        if _SPACE in piece.lstrip(_SPACE):
            # Exact all the same, but texts would hardly be cut anywhere, and the cache be of no use.
            yield f"piece {piece!r} reaches from one word into the next"
        if not known.issuperset(piece):
            # sentencepiece can merge a character that has no id of its own; the extension's merges are of ids.
            yield f"a character of piece {piece!r} is no piece"


def _with_spaces(piece: str) -> bytes:
    return piece.replace(_SPACE, " ").encode()
