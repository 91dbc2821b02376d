"""How many UTF-8 bytes of text each token id stands for: what turns nats per token into bits per byte, exactly.

Special tokens stand for 0 bytes. For a byte-level vocabulary the bytes of a text's ids add up to its UTF-8 length
(after the tokenizer's own normaliser, if it has one; a special-token literal in the text counts 0). For a SentencePiece
vocabulary they add up to that length plus the one space which SentencePiece puts before a text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from megatron_ext.errors import UserError

_BYTE_PIECE = re.compile(r"<0x[0-9A-F]{2}>")
_SPACE = "▁"


def token_bytes(vocabulary: Path) -> np.ndarray:
    """Bytes of each id of a tokenizer.json or SentencePiece tokenizer.model, int32 `[largest id + 1]`.

    Raises UserError for a kind of vocabulary whose pieces do not say their bytes (WordPiece, …).
    """
    if vocabulary.suffix == ".model":
        return _sentencepiece_bytes(vocabulary)
    content = json.loads(vocabulary.read_text(encoding="utf-8"))
    parts = json.dumps([content.get("pre_tokenizer"), content.get("decoder"), content.get("normalizer")],
                       ensure_ascii=False)
    if '"ByteLevel"' in parts:
        count = len  # every character of a byte-level piece is the name of one byte
    elif '"Metaspace"' in parts or _SPACE in parts:
        count = _piece_bytes
    else:
        raise UserError(f"{vocabulary}: the bytes of its tokens are unknown: neither byte-level nor SentencePiece-like")
    pieces = {token_id: count(piece) for piece, token_id in _pieces(content["model"])}
    for token in content.get("added_tokens", []):
        pieces[token["id"]] = 0 if token["special"] else len(token["content"].encode())
    return _as_array(pieces)


def _pieces(model: dict[str, Any]) -> Iterable[tuple[str, int]]:
    vocabulary = model["vocab"]
    if isinstance(vocabulary, dict):
        return vocabulary.items()
    return ((piece, token_id) for token_id, (piece, _) in enumerate(vocabulary))  # Unigram: [[piece, score], …]


def _sentencepiece_bytes(path: Path) -> np.ndarray:
    import sentencepiece

    model = sentencepiece.SentencePieceProcessor(model_file=str(path))
    ids = list(range(model.get_piece_size()))
    columns = zip(ids, model.id_to_piece(ids), model.is_control(ids), model.is_unknown(ids), strict=True)
    return _as_array({token_id: 0 if is_control or is_unknown else _piece_bytes(piece)
                      for token_id, piece, is_control, is_unknown in columns})


def _piece_bytes(piece: str) -> int:
    return 1 if _BYTE_PIECE.fullmatch(piece) else len(piece.replace(_SPACE, " ").encode())


def _as_array(pieces: dict[int, int]) -> np.ndarray:
    counts = np.zeros(max(pieces, default=-1) + 1, dtype=np.int32)
    for token_id, count in pieces.items():
        counts[token_id] = count
    return counts
