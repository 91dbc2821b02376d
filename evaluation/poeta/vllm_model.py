"""A Hugging Face model in vLLM, with prompts as the official harness cuts them.

lm-evaluation-harness has a vLLM model too, which asks for the distribution named `vllm` (the CPU build has another
name) and truncates in its own way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM

from evaluation.poeta.harness import STOP
from evaluation.poeta.likelihood import OptionScores, Question, encode_questions
from evaluation.poeta.table import OFFICIAL_MAX_GEN_TOKS
from evaluation.poeta.truncation import OfficialPrompts

DEFAULT_CONTEXT_TOKENS = 4096
ROOM_TOKENS = 256
"""vLLM takes no prompt beyond the context: where the official rule leaves one, its beginning goes until so many tokens
are free for the answer."""


class PoetaVLLM(OfficialPrompts, LM):
    """Greedy completions; vLLM batches by itself and reuses the beginnings that prompts share.

    Args:
        pretrained: folder of the model.
        arguments: of vllm.LLM, e.g. dtype, tensor_parallel_size, gpu_memory_utilization.
    """

    def __init__(self, pretrained: str, **arguments: Any) -> None:
        from vllm import LLM

        super().__init__()
        self.engine = LLM(model=pretrained, **{"disable_log_stats": True, "seed": 0, **arguments})
        self.tokenizer = self.engine.get_tokenizer()
        config = self.engine.llm_engine.model_config
        self._max_length = config.max_model_len
        context_tokens = getattr(config.hf_text_config, "max_position_embeddings", DEFAULT_CONTEXT_TOKENS)
        self._slice_start = OFFICIAL_MAX_GEN_TOKS - context_tokens

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Answers, each up to its stop string."""
        from vllm import SamplingParams, TokensPrompt

        prompts, sampling = [], []
        for request in requests:
            prompt, arguments = request.args
            room = min(arguments["max_gen_toks"], ROOM_TOKENS)
            tokens = self.encode_prompt(prompt)[-(self._max_length - room):]
            prompts.append(TokensPrompt(prompt_token_ids=tokens))
            sampling.append(SamplingParams(temperature=0, stop=[STOP],
                                           max_tokens=min(arguments["max_gen_toks"], self._max_length - len(tokens))))
        outputs = self.engine.generate(prompts, sampling, use_tqdm=False)
        # Decoded as a whole: vLLM's own text, which grows token by token, leaves out bytes that are no whole character.
        texts = [self.tokenizer.decode(output.outputs[0].token_ids, skip_special_tokens=True) for output in outputs]
        return [text.split(STOP)[0] for text in texts]

    def score_options(self, questions: Sequence[Question]) -> list[OptionScores]:
        """Likelihoods of the options of each question, from the log-probabilities of prompts, which vLLM computes
        without its prefix cache. One token is written, too, and leaves two less of the context."""
        from vllm import SamplingParams, TokensPrompt

        encoded = encode_questions(self.tokenizer, questions, self._max_length - 2)
        prompts = [TokensPrompt(prompt_token_ids=question.prompt + option)
                   for question in encoded for option in question.options]
        sampling = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0)
        outputs = iter(self.engine.generate(prompts, sampling, use_tqdm=False))
        return [question.scores([_nats(next(outputs).prompt_logprobs, option) for option in question.options])
                for question in encoded]

    def loglikelihood(self, requests: list[Instance]) -> NoReturn:
        """No task of PoETa V2 asks for it; see score_options."""
        raise NotImplementedError

    def loglikelihood_rolling(self, requests: list[Instance]) -> NoReturn:
        """No task of PoETa V2 asks for it."""
        raise NotImplementedError


def _nats(log_p: Sequence[Mapping[int, Any] | None], tokens: Sequence[int]) -> float:
    """Loss of the last tokens of a prompt, given a mapping of token to log-probability for each of its positions."""
    return -sum(one[token].logprob for one, token in zip(log_p[-len(tokens):], tokens, strict=True))
