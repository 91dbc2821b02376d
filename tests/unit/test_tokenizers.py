import json

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_ext.data.token_bytes import token_bytes
from megatron_ext.data.tokenizers import load_tokenizer
from megatron_ext.errors import UserError
from tests.unit.tokenizer_folders import byte_level_tokenizer, sentencepiece_tokenizer

texts = st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=5)
NASTY = ["", " ", "\r\n\t\0\x85", "e\u0301 é ﬁ", "a" * 3000, "<|endoftext|>x<|im_start|>", "</s><s>", "\u2028😀👩‍👩‍👧",
         "\n\n1. um\n\n  22", "  dois  espaços  "]


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory):
    return byte_level_tokenizer(tmp_path_factory.mktemp("bpe"))


@pytest.fixture(scope="module")
def sentencepiece_folder(tmp_path_factory):
    return sentencepiece_tokenizer(tmp_path_factory.mktemp("sp"))


def encode(folder, values, encoder="auto"):
    encoded = load_tokenizer(folder, encoder).encoder.encode(pa.array(values, pa.string()))
    ids, start = [], 0
    for length in encoded.lengths:
        ids.append(encoded.ids[start:start + length].tolist())
        start += length
    assert start == len(encoded.ids)
    return ids


@settings(deadline=None)
@given(texts)
def test_hugging_face_ids_are_the_librarys(byte_level, values):
    from tokenizers import Tokenizer

    reference = Tokenizer.from_file(str(byte_level / "tokenizer.json"))
    values = values + NASTY
    assert encode(byte_level, values) == [reference.encode(text, add_special_tokens=False).ids for text in values]


@settings(deadline=None)
@given(texts)
def test_sentencepiece_ids_are_the_librarys(sentencepiece_folder, values):
    import sentencepiece

    reference = sentencepiece.SentencePieceProcessor(model_file=str(sentencepiece_folder / "tokenizer.model"))
    values = values + NASTY
    assert encode(sentencepiece_folder, values) == [reference.encode(text) for text in values]


def test_special_token_literals(byte_level, sentencepiece_folder):
    opened = load_tokenizer(byte_level)
    assert encode(byte_level, ["<|endoftext|>"]) == [[opened.eod_token_id]] == [[0]]
    opened = load_tokenizer(sentencepiece_folder)
    ids = encode(sentencepiece_folder, ["</s>"])[0]
    assert opened.eod_token_id == 2
    assert 2 not in ids
    assert opened.encoder.decode(ids) == "</s>"


@pytest.mark.slow
def test_ids_are_those_of_transformers(byte_level):
    from transformers import AutoTokenizer

    reference = AutoTokenizer.from_pretrained(byte_level)
    assert len(reference) == load_tokenizer(byte_level).vocab_size
    assert encode(byte_level, NASTY) == [reference(text, add_special_tokens=False).input_ids for text in NASTY]


def test_stored_truncation_padding_and_bos_change_nothing(byte_level, tmp_path):
    from tokenizers import Tokenizer, processors

    tokenizer = Tokenizer.from_file(str(byte_level / "tokenizer.json"))
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=9)
    tokenizer.post_processor = processors.TemplateProcessing(single="<|im_start|> $A",
                                                             special_tokens=[("<|im_start|>", 1)])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"eos_token": {"content": "<|im_start|>"}}))
    assert encode(tmp_path, NASTY) == encode(byte_level, NASTY)
    assert load_tokenizer(tmp_path).eod_token_id == 1


def test_encoder_choice(byte_level, sentencepiece_folder, tmp_path):
    for source in (byte_level, sentencepiece_folder):
        for file in source.iterdir():
            (tmp_path / file.name).write_bytes(file.read_bytes())
    assert load_tokenizer(tmp_path).reference == "tokenizers"
    assert load_tokenizer(tmp_path, "sentencepiece").sha256 == load_tokenizer(sentencepiece_folder).sha256
    with pytest.raises(UserError, match=r"holds no tokenizer\.model, .* it holds: tokenizer\.json"):
        load_tokenizer(byte_level, "sentencepiece")


@pytest.mark.parametrize(("files", "message"), [
    ({}, "holds no tokenizer.json nor tokenizer.model"),
    ({"tokenizer.json": "{"}, "cannot be read as a Hugging Face"),
    ({"tokenizer.model": "x"}, "cannot be read as a SentencePiece model"),
    ({"tokenizer_config.json": "{}", "tokenizer.json": None}, "names an eos_token"),
    ({"tokenizer_config.json": '{"eos_token": "</s>"}', "tokenizer.json": None}, "'</s>', which is not in the"),
])
def test_unusable_folders(byte_level, tmp_path, files, message):
    for name, content in files.items():
        (tmp_path / name).write_text(content if content is not None else (byte_level / name).read_text())
    with pytest.raises(UserError, match=message):
        load_tokenizer(tmp_path)


@settings(deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_bytes_of_byte_level_tokens_add_up(byte_level, text):
    counts = token_bytes(byte_level / "tokenizer.json")
    assert counts[encode(byte_level, [text])[0]].sum() == len(text.encode())


@settings(deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁"), min_size=1))
def test_bytes_of_sentencepiece_tokens_add_up_to_one_space_more(sentencepiece_folder, text):
    counts = token_bytes(sentencepiece_folder / "tokenizer.model")
    assert counts[encode(sentencepiece_folder, [text])[0]].sum() == len(text.encode()) + 1


def test_bytes_of_special_and_added_tokens(byte_level, tmp_path):
    from tokenizers import AddedToken, Tokenizer

    tokenizer = Tokenizer.from_file(str(byte_level / "tokenizer.json"))
    tokenizer.add_tokens([AddedToken("<ação>", special=False)])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    counts = token_bytes(tmp_path / "tokenizer.json")
    assert len(counts) == tokenizer.get_vocab_size()
    assert counts[0] == counts[1] == 0
    assert counts[-1] == len("<ação>".encode()) == 8


def test_bytes_of_a_sentencepiece_like_tokenizer_json(tmp_path):
    content = {"model": {"type": "BPE", "byte_fallback": True,
                         "vocab": {"<s>": 0, "<0x0A>": 1, "▁": 2, "▁é": 3, "a▁▁": 4}},
               "added_tokens": [{"id": 0, "content": "<s>", "special": True}],
               "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}}
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(content))
    assert token_bytes(path).tolist() == [0, 1, 1, 3, 3]
    path.write_text(json.dumps(content | {"normalizer": None, "decoder": {"type": "WordPiece"}}))
    with pytest.raises(UserError, match="neither byte-level nor SentencePiece-like"):
        token_bytes(path)
