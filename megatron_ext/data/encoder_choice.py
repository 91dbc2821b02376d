"""Which encoder serves a tokenizer: the fastest whose ids are the reference's, tried on a sample before it is used."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa

from megatron_ext.data.encoders import (
    Encoder,
    EncoderRefusedError,
    GigatokenEncoder,
    HuggingFaceEncoder,
    Reference,
    SentencePieceEncoder,
)
from megatron_ext.data.native_encoder import NativeEncoder
from megatron_ext.errors import UserError

EncoderName = Literal["auto", "tokenizers", "sentencepiece", "gigatoken", "native"]
VOCABULARY_FILES = {"tokenizers": "tokenizer.json", "sentencepiece": "tokenizer.model"}
_FASTEST_FIRST = {"tokenizers": ("gigatoken",), "sentencepiece": ("native", "gigatoken")}
_OPENERS: dict[str, Callable[[Path, Reference], Encoder]] = {"native": NativeEncoder, "gigatoken": GigatokenEncoder}
_NASTY = (
    "", " ", "   ", "\n", "\r\n", "\t x\t", "\0", "a\0\0b\0", "\x01\x7f\x85\u2028\u2029\ufeff", "x  y   z    ", "  x ",
    "▁", "▁▁x ▁ y", "<0x0A>", "a" * 100, "ab" * 50, " a" * 50, "😀👩‍👩‍👧🇧🇷", "e\u0301 é ﬁ ½", "\U0010ffff\ue000\ufffd",
    "ação, coração; São João!", "1.234,56 €", "你好，世界", "if (x):\n\treturn  x\n\n\n", "https://a.b/c?d=e&f=%20",
)
_CHARACTERS = (range(0x80), range(0x80, 0x250), range(0x250, 0xD800), range(0xE000, 0x20000))  # without surrogates
_NUM_RANDOM_TEXTS = 300
_TOKENS_A_TEXT = 60


@dataclass(frozen=True)
class EncoderChoice:
    """An encoder, and how it came to be taken."""

    encoder: Encoder
    library: Reference
    """The library whose ids these are."""
    passed_over: dict[str, str]
    """Faster encoder -> why it was not taken."""

    @property
    def reference(self) -> str:
        """That library's name."""
        return self.library.name

    def __str__(self) -> str:
        same = "" if self.encoder.name == self.reference else f" (same ids as {self.reference})"
        return "; ".join([f"encoder {self.encoder.name}{same}",
                          *(f"not {name}: {why}" for name, why in self.passed_over.items())])


def choose_encoder(folder: Path, wanted: EncoderName, is_tried: bool = False) -> EncoderChoice:
    """Open the encoder of a tokenizer folder.

    `auto` matches `tokenizers` where there is a tokenizer.json, else `sentencepiece`, and takes the fastest encoder
    with the same ids. Raises UserError when the needed file is missing or damaged, or `wanted` cannot serve it.

    Args:
        is_tried: another process has tried `wanted` on the sample: that takes longer than a worker's start should.
    """
    reference_name = _reference_of(folder, wanted)
    path = folder / VOCABULARY_FILES[reference_name]
    reference = HuggingFaceEncoder(path) if reference_name == "tokenizers" else SentencePieceEncoder(path)
    passed_over: dict[str, str] = {}
    for name in _FASTEST_FIRST[reference_name] if wanted == "auto" else (wanted,):
        if name == reference_name:
            break
        try:
            encoder = _OPENERS[name](path, reference)
            if not is_tried:
                _try(encoder, reference)
            return EncoderChoice(encoder, reference, passed_over)
        except EncoderRefusedError as error:
            if wanted != "auto":
                raise UserError(f"encoder {wanted!r} cannot serve {path}: {error}; encoder=auto takes another with the "
                                f"ids of {reference_name}") from None
            passed_over[name] = str(error)
    return EncoderChoice(reference, reference, passed_over)


def _reference_of(folder: Path, wanted: EncoderName) -> str:
    names = {"auto": list(VOCABULARY_FILES), "gigatoken": list(VOCABULARY_FILES),
             "native": ["sentencepiece"]}.get(wanted, [wanted])
    for name in names:
        if (folder / VOCABULARY_FILES[name]).is_file():
            return name
    files = " nor ".join(VOCABULARY_FILES[name] for name in names)
    raise UserError(f"{folder} holds no {files}, which encoder {wanted!r} reads; it holds: "
                    f"{', '.join(sorted(path.name for path in folder.iterdir())) or 'nothing'}")


def _try(encoder: Encoder, reference: Reference) -> None:
    """Encode a sample. Raises EncoderRefusedError when the ids are not the reference's."""
    sample = _sample(reference)
    expected = reference.encode(sample)
    try:
        found = encoder.encode(sample)
    except Exception as error:  # of another library: whatever it is, the reference can do without it
        raise EncoderRefusedError(f"it fails on the sample: {error}") from None
    starts = np.cumsum(expected.lengths) - expected.lengths
    if not np.array_equal(expected.lengths, found.lengths):
        text = int(np.flatnonzero(expected.lengths != found.lengths)[0])
    elif not np.array_equal(expected.ids, found.ids):
        text = int(np.searchsorted(starts, np.flatnonzero(expected.ids != found.ids)[0], side="right")) - 1
    else:
        return
    raise EncoderRefusedError(f"its ids are not those of {reference.name}, first on the text "
                              f"{sample[text].as_py()[:60]!r}")


def _sample(reference: Reference) -> pa.Array:
    """Texts that tell encoders apart: traps, special tokens written out, random tokens and random characters."""
    generator = random.Random(0)
    special = [f"a{token} {token}b" for token in reference.added_tokens()]
    tokens = [reference.decode(generator.choices(range(reference.vocab_size), k=_TOKENS_A_TEXT))
              for _ in range(_NUM_RANDOM_TEXTS)]
    characters = ["".join(chr(generator.choice(generator.choice(_CHARACTERS))) for _ in range(_TOKENS_A_TEXT))
                  for _ in range(_NUM_RANDOM_TEXTS)]
    return pa.array([*_NASTY, *special[:1000], *tokens, *characters], pa.string())
