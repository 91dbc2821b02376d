import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_ext.data.encoder_choice import choose_encoder
from megatron_ext.data.encoders import EncoderRefusedError, SentencePieceEncoder
from megatron_ext.data.native import build
from megatron_ext.data.native_encoder import NativeEncoder
from megatron_ext.data.tokenization import TokenizeSettings, tokenize_corpus
from megatron_ext.errors import UserError
from tests.unit.sentencepiece_models import CORPUS, SYMBOLS, edited, fuzzed_texts, train, with_large_ids

ROOT = Path(__file__).parents[2]
FUZZED_DOCUMENTS = int(os.environ.get("MEGATRON_EXT_FUZZED_DOCUMENTS", 120_000))  # of all models together
MODELS = {
    "plain": lambda: train(),
    "small": lambda: train(vocab_size=330),
    "symbols": lambda: train(user_defined_symbols=SYMBOLS),
    "no_prefix": lambda: train(add_dummy_prefix=False, user_defined_symbols=["▁▁", "abc"]),
    "large_ids": lambda: with_large_ids(train()),
    "equal_scores": lambda: edited(train(), lambda proto: [setattr(p, "score", p.score // 8) for p in proto.pieces]),
}
texts_of_any_kind = st.lists(st.one_of(
    st.text(st.characters(exclude_categories=["Cs"])),
    st.text(st.sampled_from("ab c▁\n\r\0éã你😀")),
    st.lists(st.sampled_from(["abc", " ", "▁", "\n\n", "você", "</s>", "<0x41>", "é", "a" * 40, "ação"])).map("".join),
), max_size=6)


@pytest.fixture(scope="module")
def extension():
    try:
        return build.load_extension()
    except build.NativeUnavailableError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def encoders(extension, tmp_path_factory):
    """Name -> (native encoder, reference), of each model."""
    folder = tmp_path_factory.mktemp("models")
    opened = {}
    for name, make in MODELS.items():
        path = folder / name / "tokenizer.model"
        path.parent.mkdir()
        path.write_bytes(make())
        opened[name] = NativeEncoder(path), SentencePieceEncoder(path)
    return opened


def assert_equal(encoder, reference, texts, end_id=None):
    def ids_of(encoder, texts):
        encoded = encoder.encode(pa.array(texts, pa.string()), end_id)
        return np.split(encoded.ids, np.cumsum(encoded.lengths))[:-1]

    for text, found, expected in zip(texts, ids_of(encoder, texts), ids_of(reference, texts), strict=True):
        assert np.array_equal(found, expected), text


@pytest.mark.parametrize("model", MODELS)
@settings(deadline=None, max_examples=60)
@given(texts=texts_of_any_kind)
def test_nasty_strings_have_the_ids_of_sentencepiece(encoders, model, texts):
    assert_equal(*encoders[model], texts)


@pytest.mark.parametrize("model", MODELS)
def test_fuzzed_documents_have_the_ids_of_sentencepiece(encoders, model):
    for seed in range(FUZZED_DOCUMENTS // (4_000 * len(MODELS))):
        assert_equal(*encoders[model], fuzzed_texts(seed, count=4_000))


@pytest.mark.parametrize("model", ["plain", "symbols", "large_ids"])
def test_long_words_and_long_documents(encoders, model):
    words = "".join(CORPUS).replace(" ", "").replace("\n", "")
    assert_equal(*encoders[model], ["a" * 20_000, words, words * 20, " " * 5_000, "ab" * 5_000, "你" * 3_000,
                                    " ".join(CORPUS) * 50, words[:33], words[:32], words[:31]])


def test_the_integer_type_fits_the_vocabulary(encoders):
    small, large = encoders["plain"][0].encode(pa.array(["ação"])), encoders["large_ids"][0].encode(pa.array(["ação"]))
    assert (small.ids.dtype, large.ids.dtype) == (np.uint16, np.int32)
    assert large.ids.min() > 65_535


def test_the_end_id_follows_texts_that_have_ids(encoders):
    for encoder, reference in encoders.values():
        assert_equal(encoder, reference, ["", "a", "", "b c", ""], end_id=2)
    assert encoders["plain"][0].encode(pa.array(["", "a"]), end_id=2).ids[-1] == 2


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view()])
def test_every_layout_of_arrow_strings(encoders, kind):
    texts = ["ação", "", "dois três", "", "x" * 50, "fim"]
    encoder, reference = encoders["plain"]
    array = pa.array(["before", *texts, "after"], pa.string()).cast(kind)
    for start, length in ((0, 8), (1, 6), (2, 1), (2, 0), (7, 1)):
        part = array.slice(start, length)
        assert encoder.encode(part).ids.tolist() == reference.encode(part).ids.tolist()
    assert encoder.encode(pa.array([], kind)).ids.tolist() == []
    assert encoder.encode(pa.array(["", ""], kind)).lengths.tolist() == [0, 0]


@pytest.mark.parametrize("invalid", [b"\xff", b"\xc3", b"a\xe2\x96", b"\xc0\xaf", b"\xe0\x80\xaf", b"\xed\xa0\x80",
                                     b"\xf0\x80\x80\x80", b"\xf4\x90\x80\x80", b"\x80", b"\xf8\x88\x80\x80\x80",
                                     b"\xc3a", b"12345678\xf0\x9f\x98"])
def test_text_that_is_not_utf8_is_refused(encoders, invalid):
    with pytest.raises(UnicodeDecodeError):
        invalid.decode()
    texts = pa.array([b"well", invalid], pa.binary()).view(pa.string())
    encoder, _ = encoders["plain"]
    with pytest.raises(UserError, match="text 1 is not UTF-8 at its byte"):
        encoder.encode(texts)
    assert encoder.encode(pa.array(["well"])).lengths.sum() > 0


def test_threads_may_share_an_encoder(encoders):
    encoder, reference = encoders["plain"]
    texts = [pa.array(fuzzed_texts(seed, 300)) for seed in range(4)]
    expected = [reference.encode(part).ids.tolist() for part in texts]
    found = [None] * len(texts)

    def encode(number):
        for _ in range(5):
            found[number] = encoder.encode(texts[number]).ids.tolist()

    threads = [threading.Thread(target=encode, args=(number,)) for number in range(len(texts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == expected


REFUSED = {
    "unigram": ({"model_type": "unigram"}, "not byte-pair encoding"),
    "no_fallback": ({"byte_fallback": False}, "no byte fallback"),
    "normaliser": ({"normalization_rule_name": "nmt_nfkc"}, "'nmt_nfkc' changes characters"),
    "spaces": ({"remove_extra_whitespaces": True}, "changes spaces"),
    "suffix": ({"treat_whitespace_as_suffix": True}, "words end with their space"),
    "across_words": ({"split_by_whitespace": False}, "reaches from one word into the next"),
    "one_character_control": ({"control_symbols": ["\x01"]}, "a special piece is a single character"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_vocabularies_are_refused_and_handled_by_the_reference(extension, tmp_path, name):
    changes, reason = REFUSED[name]
    path = tmp_path / "tokenizer.model"
    path.write_bytes(train(**changes))
    with pytest.raises(EncoderRefusedError, match=reason):
        NativeEncoder(path)
    choice = choose_encoder(tmp_path, "auto")
    assert choice.encoder.name == "sentencepiece"
    assert reason in choice.passed_over["native"]
    assert reason in str(choice)
    assert_equal(choice.encoder, SentencePieceEncoder(path), fuzzed_texts(0, 50))
    with pytest.raises(UserError, match=f"'native' cannot serve .*{reason}.*encoder=auto"):
        choose_encoder(tmp_path, "native")


@pytest.mark.parametrize(("edit", "reason"), [
    (lambda proto: setattr(proto.pieces[300], "type", proto.pieces[300].UNUSED), "unused pieces"),
    (lambda proto: proto.pieces.add(piece="▁é𝔘", score=-1), "a character of piece '▁é𝔘' is no piece"),
    (lambda proto: proto.pieces.add(piece="a b", score=-1), "a space that no text can match"),
])
def test_edited_vocabularies_are_refused(extension, tmp_path, edit, reason):
    path = tmp_path / "tokenizer.model"
    path.write_bytes(edited(train(), edit))
    with pytest.raises(EncoderRefusedError, match=reason):
        NativeEncoder(path)


def write_corpus(path, texts):
    path.write_text("".join(json.dumps({"id": str(i), "text": text}) + "\n" for i, text in enumerate(texts)))
    return path


@pytest.mark.parametrize("model", ["plain", "symbols", "large_ids"])
def test_datasets_are_byte_identical_to_the_references(encoders, tmp_path, model):
    documents = write_corpus(tmp_path / "a.jsonl", ["", *fuzzed_texts(seed=9, count=700), ""])
    (tmp_path / "model").mkdir()
    (tmp_path / "model/tokenizer.model").write_bytes(MODELS[model]())
    made = {encoder: tokenize_corpus(TokenizeSettings(documents=documents, tokenizer=tmp_path / "model", workers=1,
                                                      encoder=encoder, valid_fraction=0.2), tmp_path / encoder)
            for encoder in ("native", "sentencepiece")}
    for name in ("train.bin", "train.idx", "valid.bin", "valid.idx", "sequences.parquet"):
        native, reference = ((made[encoder].path / name).read_bytes() for encoder in ("native", "sentencepiece"))
        assert native == reference and len(native) > 0, name
    assert made["native"].content_hash == made["sentencepiece"].content_hash


def test_tokenizing_says_which_encoder_it_takes(encoders, tmp_path, capsys):
    documents = write_corpus(tmp_path / "a.jsonl", CORPUS[:4])
    (tmp_path / "tokenizer.model").write_bytes(MODELS["plain"]())
    tokenize_corpus(TokenizeSettings(documents=documents, tokenizer=tmp_path, workers=1), tmp_path / "out")
    assert "encoder native (same ids as sentencepiece)" in capsys.readouterr().out


@pytest.fixture
def nothing_built(tmp_path, monkeypatch):
    monkeypatch.setattr(build, "FOLDER", tmp_path)
    return tmp_path


def test_without_a_compiler_the_reference_is_taken(nothing_built, monkeypatch, capsys):
    pytest.importorskip("pybind11")
    monkeypatch.setenv("CXX", str(nothing_built / "no-such-compiler"))
    build.main()
    assert "not available, slower ones with the same ids are used:" in (said := capsys.readouterr().out)
    assert "no-such-compiler cannot be run" in said
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX")
    build.main()
    assert "no C++ compiler (c++, g++, clang++) was found" in capsys.readouterr().out
    (nothing_built / "tokenizer.model").write_bytes(MODELS["plain"]())
    choice = choose_encoder(nothing_built, "auto")
    assert choice.encoder.name == "sentencepiece"
    assert "it is not compiled" in choice.passed_over["native"]


def test_a_compiler_that_fails_is_quoted(nothing_built, monkeypatch):
    pytest.importorskip("pybind11")
    if shutil.which("c++") is None:
        pytest.skip("no C++ compiler")
    (nothing_built / "broken.cpp").write_text("int main( {")
    monkeypatch.setattr(build, "SOURCES", (nothing_built / "broken.cpp",))
    with pytest.raises(build.NativeUnavailableError, match=r"c\+\+ failed: .*error"):
        build.build()
    assert [path.name for path in nothing_built.iterdir()] == ["broken.cpp"]


def test_an_extension_of_other_sources_is_not_used(extension, nothing_built, monkeypatch):
    source = nothing_built / "changed.cpp"
    source.write_text("// one")
    monkeypatch.setattr(build, "SOURCES", (source,))
    build.extension_path().write_bytes(b"not a library")
    with pytest.raises(build.NativeUnavailableError, match="cannot be loaded"):
        build.load_extension()
    source.write_text("// two")
    with pytest.raises(build.NativeUnavailableError, match="it is not compiled"):
        build.load_extension()


def test_building_again_does_nothing(extension):
    before = build.extension_path().stat().st_mtime_ns
    done = subprocess.run([sys.executable, "-m", "megatron_ext.data.native.build"], cwd=ROOT, capture_output=True,
                          text=True, check=True)
    assert (done.stdout, build.extension_path().stat().st_mtime_ns) == ("", before)
