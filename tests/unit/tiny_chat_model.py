"""Random models with a real byte-level tokenizer and a chat template, small enough to rewrite in a unit test."""

from pathlib import Path

CHAT_TEMPLATE = ("{% for message in messages %}<|user|>{{ message['content'] }}<|end|>{% endfor %}"
                 "{% if add_generation_prompt %}<|assistant|>{% endif %}")
SPECIAL = ["<|end|>", "<|user|>", "<|assistant|>", "<|endoftext|>"]


def make_tiny_chat_model(folder: Path, chat_template: str | None = CHAT_TEMPLATE) -> Path:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    vocab_size = _save_tokenizer(folder, chat_template)
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(hidden_size=32, intermediate_size=64, num_attention_heads=4, num_key_value_heads=2,
                                 **_common(vocab_size))).save_pretrained(folder)
    return folder


def make_tiny_qwen2(folder: Path) -> Path:
    """A size that vLLM's attention takes too. Its likeliest token is ASCII: equal texts are equal tokens."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    vocab_size = _save_tokenizer(folder, CHAT_TEMPLATE)
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(Qwen2Config(hidden_size=64, intermediate_size=128, num_attention_heads=2,
                                         num_key_value_heads=2, **_common(vocab_size)))
    no_ascii = [index for index, token in enumerate(_vocabulary()) if not token.isascii() or token in SPECIAL[1:]]
    with torch.no_grad():
        model.lm_head.weight[no_ascii] *= 0.05
    model.save_pretrained(folder)
    return folder


def _common(vocab_size: int) -> dict:
    return {"vocab_size": vocab_size, "num_hidden_layers": 2, "max_position_embeddings": 2048, "eos_token_id": 0,
            "bos_token_id": None, "pad_token_id": None, "tie_word_embeddings": False, "initializer_range": 0.2}


def _vocabulary() -> list[str]:
    from tokenizers import pre_tokenizers

    return [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())]


def _save_tokenizer(folder: Path, chat_template: str | None) -> int:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: index for index, token in enumerate(_vocabulary())}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=SPECIAL[0], additional_special_tokens=SPECIAL)
    fast.chat_template = chat_template
    fast.save_pretrained(folder)
    return len(vocabulary)
