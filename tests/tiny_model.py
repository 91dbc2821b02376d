"""A random Llama over bytes, as a Hugging Face folder: small enough that only overhead counts."""

from __future__ import annotations

from pathlib import Path


def write_tiny_model(folder: Path, context_tokens: int = 2048 + 300) -> Path:
    """Write the model and its tokenizer; returns the folder."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={char: i for i, char in enumerate(["</s>", "<s>", *alphabet])}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", bos_token="<s>",
                            pad_token="</s>").save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=258, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
                         num_attention_heads=2, max_position_embeddings=context_tokens, initializer_range=0.5,
                         eos_token_id=0, pad_token_id=0, bos_token_id=1)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder
