"""A random Llama as a Hugging Face folder: small enough that only overhead counts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def write_tiny_model(folder: Path, context_tokens: int = 2048 + 300, texts: Sequence[str] = (),
                     num_heads: int = 2, initializer_range: float = 0.5) -> Path:
    """Write the model and its tokenizer, of bytes or, with texts to learn from, of 2,048 pieces; returns the folder."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={char: i for i, char in enumerate(["</s>", "<s>", *alphabet])}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if texts:
        tokenizer.train_from_iterator(texts, trainers.BpeTrainer(
            vocab_size=2048, special_tokens=["</s>", "<s>"], initial_alphabet=alphabet, show_progress=False))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", bos_token="<s>",
                            pad_token="</s>").save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=tokenizer.get_vocab_size(), hidden_size=32 * num_heads,
                         intermediate_size=64 * num_heads,
                         num_hidden_layers=2, num_attention_heads=num_heads, max_position_embeddings=context_tokens,
                         initializer_range=initializer_range,
                         eos_token_id=0, pad_token_id=0, bos_token_id=1)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder
