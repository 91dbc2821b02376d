import os
import sys

import numpy as np
import pyarrow as pa
import pytest

from megatron_ext.data import encoder_choice
from megatron_ext.data.encoder_choice import choose_encoder
from megatron_ext.data.encoders import Encoded, EncoderRefusedError, GigatokenEncoder, HuggingFaceEncoder
from megatron_ext.data.tokenizers import load_tokenizer
from megatron_ext.errors import UserError
from tests.unit.sentencepiece_models import fuzzed_texts
from tests.unit.tokenizer_folders import byte_level_tokenizer, sentencepiece_tokenizer

FUZZED_DOCUMENTS = int(os.environ.get("MEGATRON_EXT_FUZZED_DOCUMENTS", 100_000))


class Changed:
    """The reference, but for what `change` does to the ids of one text."""

    name = "native"

    def __init__(self, reference, text, change):
        self._reference, self._text, self._change = reference, text, change

    def encode(self, texts, end_id=None):
        encoded = [self._reference.encode(pa.array([text]), end_id).ids.tolist() for text in texts.to_pylist()]
        encoded = [self._change(ids) if text == self._text else ids
                   for ids, text in zip(encoded, texts.to_pylist(), strict=True)]
        return Encoded(np.array([one for ids in encoded for one in ids]), np.array([len(ids) for ids in encoded]))


@pytest.fixture
def folder(tmp_path):
    return sentencepiece_tokenizer(tmp_path / "sp")


def use_as_native(monkeypatch, opener):
    monkeypatch.setattr(encoder_choice, "_FASTEST_FIRST", {"sentencepiece": ("native",)})
    monkeypatch.setitem(encoder_choice._OPENERS, "native", opener)


@pytest.mark.parametrize(("text", "change"), [
    ("▁", lambda ids: [*ids, 5]),
    ("a</s> </s>b", lambda ids: [*ids[:-1], ids[-1] + 1]),
    ("\U0010ffff\ue000\ufffd", lambda ids: ids[1:]),
])
def test_an_encoder_with_other_ids_is_passed_over_and_the_text_named(folder, monkeypatch, text, change):
    use_as_native(monkeypatch, lambda path, reference: Changed(reference, text, change))
    choice = choose_encoder(folder, "auto")
    assert choice.encoder.name == choice.reference == "sentencepiece"
    assert choice.passed_over["native"].endswith(f"first on the text {text!r}")
    with pytest.raises(UserError, match=r"'native' cannot serve .*its ids are not those of sentencepiece"):
        choose_encoder(folder, "native")


def test_an_encoder_with_the_same_ids_is_taken(folder, monkeypatch):
    use_as_native(monkeypatch, lambda path, reference: Changed(reference, "no text of the sample", None))
    choice = choose_encoder(folder, "auto")
    assert (choice.encoder.name, choice.reference, choice.passed_over) == ("native", "sentencepiece", {})
    assert choose_encoder(folder, "sentencepiece").encoder.name == "sentencepiece"


def test_an_encoder_that_fails_is_passed_over(folder, monkeypatch):
    use_as_native(monkeypatch, lambda path, reference: Changed(reference, "▁", lambda ids: 1 / 0))
    assert choose_encoder(folder, "auto").passed_over == {"native": "it fails on the sample: division by zero"}
    assert choose_encoder(folder, "native", is_tried=True).encoder.name == "native"  # as a worker opens it


def test_gigatoken_on_a_byte_level_tokenizer(tmp_path):
    pytest.importorskip("gigatoken")
    byte_level_tokenizer(tmp_path)
    choice = choose_encoder(tmp_path, "auto")
    assert (choice.encoder.name, choice.reference) == ("gigatoken", "tokenizers")
    texts = pa.array(["", *fuzzed_texts(seed=3, count=1_000), ""])
    reference = HuggingFaceEncoder(tmp_path / "tokenizer.json")
    for end_id in (None, 0):
        found, expected = choice.encoder.encode(texts, end_id), reference.encode(texts, end_id)
        assert np.array_equal(found.ids, expected.ids)
        assert np.array_equal(found.lengths, expected.lengths)
    assert choice.encoder.encode(texts.slice(1, 3)).lengths.tolist() == reference.encode(
        texts.slice(1, 3)).lengths.tolist()
    assert load_tokenizer(tmp_path).eod_token_id == 0


def test_fuzzed_documents_have_the_ids_of_tokenizers(tmp_path):
    pytest.importorskip("gigatoken")
    byte_level_tokenizer(tmp_path)
    encoder = choose_encoder(tmp_path, "gigatoken").encoder
    reference = HuggingFaceEncoder(tmp_path / "tokenizer.json")
    for seed in range(FUZZED_DOCUMENTS // 4_000):
        texts = pa.array(fuzzed_texts(seed, count=4_000), pa.string())
        found, expected = encoder.encode(texts), reference.encode(texts)
        assert np.array_equal(found.lengths, expected.lengths), seed
        assert np.array_equal(found.ids, expected.ids), seed


def test_gigatoken_reads_special_tokens_that_sentencepiece_takes_for_text(folder):
    pytest.importorskip("gigatoken")
    with pytest.raises(UserError, match=r"'gigatoken' cannot serve .*first on the text 'a<s> <s>b'"):
        choose_encoder(folder, "gigatoken")


def test_gigatoken_that_is_missing_or_cannot_read_the_file(tmp_path, monkeypatch):
    byte_level_tokenizer(tmp_path)
    reference = HuggingFaceEncoder(tmp_path / "tokenizer.json")
    monkeypatch.setitem(sys.modules, "gigatoken", None)
    assert choose_encoder(tmp_path, "auto").passed_over == {
        "gigatoken": "it is not installed (pip install gigatoken==0.10.0)"}
    monkeypatch.undo()
    pytest.importorskip("gigatoken")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(EncoderRefusedError, match=r"it cannot read tokenizer\.json"):
        GigatokenEncoder(tmp_path / "tokenizer.json", reference)
