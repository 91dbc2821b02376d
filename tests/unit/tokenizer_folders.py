"""Small tokenizers for tests, trained on the spot."""

import json
from pathlib import Path

TEXTS = [
    "A soma de dois números pares é par; a de dois ímpares também.",
    "Em 1822, às margens do Ipiranga, D. Pedro proclamou a independência.",
    "ação, coração, São João — maçã! ¿Qué? 😀 你好",
    "    def f(x):\n\treturn x + 1\n\n",
] * 8


def byte_level_tokenizer(folder: Path, vocab_size: int = 400) -> Path:
    """A byte-level BPE tokenizer with the special tokens <|endoftext|> (its eos) and <|im_start|>."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(TEXTS, trainers.BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False,
        special_tokens=["<|endoftext|>", "<|im_start|>"]))
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|endoftext|>"}))
    return folder


def sentencepiece_tokenizer(folder: Path, vocab_size: int = 340) -> Path:
    """A SentencePiece BPE model of the Llama-2 kind: byte fallback, identity normaliser, one leading space."""
    import sentencepiece

    folder.mkdir(parents=True, exist_ok=True)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS), model_prefix=str(folder / "tokenizer"), vocab_size=vocab_size, model_type="bpe",
        byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False, minloglevel=2,
        hard_vocab_limit=False, num_threads=1)
    (folder / "tokenizer.vocab").unlink()
    return folder
