from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_ext.data.rewriting import chunking

split_into_chunks = partial(chunking.split_into_chunks, punkt="portuguese")

PIECES = st.sampled_from(["Dr. Silva chegou às 15h30.", "Não! Sim?", "palavra", " ", "\n", "\n\n", "\n \n", "\t", "ção",
                          "x" * 60, "n.º 8.112/90", "…", "\u00a0", "🔎", "\r\n", "fim."])


def count_words_and_signs(texts):
    """Stands for a tokenizer: a word of up to 4 characters, or white space, is a token."""
    return [sum(-(-len(word) // 4) for word in text.split()) for text in texts]


def count_characters(texts):
    return [len(text) for text in texts]


@settings(max_examples=200, deadline=None)
@given(st.one_of(st.text(), st.lists(PIECES).map("".join)), st.integers(1, 40))
def test_no_character_is_lost_and_no_chunk_too_large(text, max_tokens):
    chunks = split_into_chunks(text, max_tokens, count_characters)
    assert "".join(chunks) == text
    assert all(0 < len(chunk) <= max_tokens for chunk in chunks)


def test_an_empty_text_has_no_chunks():
    assert split_into_chunks("", 10, count_characters) == []


def test_a_text_that_fits_is_one_chunk():
    assert split_into_chunks("Um.\n\nDois.", 100, count_characters) == ["Um.\n\nDois."]


def test_paragraphs_that_fit_are_not_cut():
    text = "aaaa bbbb cccc\n\ndddd eeee ffff\n\ngggg hhhh"
    chunks = split_into_chunks(text, 4, count_words_and_signs)
    assert chunks == ["aaaa bbbb cccc\n\n", "dddd eeee ffff\n\n", "gggg hhhh"]


def test_a_long_paragraph_is_cut_at_sentences_and_not_after_abbreviations():
    text = "O Dr. Silva mora na av. Brasil, n.º 10. A Sra. Costa mora longe. Ambos trabalham."
    chunks = split_into_chunks(text, 40, count_characters)
    assert chunks == ["O Dr. Silva mora na av. Brasil, n.º 10. ", "A Sra. Costa mora longe. ", "Ambos trabalham."]


def test_a_long_sentence_is_cut_between_words_and_a_long_word_between_characters():
    assert split_into_chunks("abc def ghi", 8, count_characters) == ["abc ", "def ghi"]
    assert [len(chunk) for chunk in split_into_chunks("x" * 10, 4, count_characters)] == [4, 4, 2]


def test_chunks_are_filled_evenly():
    text = "\n\n".join(["aaaa"] * 11)
    sizes = count_words_and_signs(split_into_chunks(text, 10, count_words_and_signs))
    assert sizes == [6, 5]


@pytest.mark.parametrize("num_paragraphs", [2000])
def test_a_book_comes_back_in_order(num_paragraphs):
    text = "".join(f"Parágrafo {i}. " + "Uma frase qualquer do livro. " * 8 + "\n\n" for i in range(num_paragraphs))
    chunks = split_into_chunks(text, 350, count_words_and_signs)
    assert "".join(chunks) == text
    assert len(chunks) > num_paragraphs / 8
