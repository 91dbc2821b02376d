"""vLLM's offline engine, kept full: requests enter while others are under way, so its batch never drains."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from megatron_ext.data.rewriting.engines.chat import Encoded, encode_batch, load_chat_tokenizer
from megatron_ext.data.rewriting.engines.interface import (
    STOP,
    UNKNOWN,
    Answer,
    Completion,
    Request,
    Sampling,
    TakeBatch,
)
from megatron_ext.data.rewriting.engines.settings import VllmSettings
from megatron_ext.errors import UserError


class VllmEngine:
    """One engine on one GPU or one tensor-parallel group, or on the CPU with vLLM's CPU build."""

    def __init__(self, model: Path, sampling: Sampling, settings: VllmSettings,
                 template_arguments: Mapping[str, Any] | None = None,
                 schema: Mapping[str, Any] | None = None) -> None:
        self._sampling, self._template_arguments, self._schema = sampling, template_arguments or {}, schema
        self._max_num_waiting = settings.max_num_waiting
        self._tokenizer = load_chat_tokenizer(model)
        self.llm = _open_llm(engine_arguments(model, settings))
        self._engine = self.llm.llm_engine
        self._max_model_len = self.llm.model_config.max_model_len

    def answer(self, take: TakeBatch) -> Iterator[Answer]:
        """See Engine."""
        under_way: dict[str, Request] = {}
        while True:
            while len(under_way) < self._max_num_waiting and (batch := take()):
                fitting, failures = encode_batch(self._tokenizer, batch, self._template_arguments, self._max_model_len)
                yield from failures
                self._add(fitting)
                under_way |= {request.key: request for request, _ in fitting}
            if not under_way:
                return
            for output in self._engine.step():
                if output.finished:
                    yield under_way.pop(output.request_id), self._completion(output)

    def _add(self, encoded: Encoded) -> None:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

        rendered = self._engine.renderer.render_cmpl([{"prompt_token_ids": ids} for _, ids in encoded])
        # Weak models go on with white space for ever where the schema leaves them free to.
        structured = StructuredOutputsParams(json=dict(self._schema), disable_any_whitespace=True) \
            if self._schema else None
        for (request, _), prompt in zip(encoded, rendered, strict=True):
            params = SamplingParams(
                temperature=self._sampling.temperature, top_p=self._sampling.top_p, max_tokens=request.max_new_tokens,
                seed=request.seed if self._sampling.temperature else None,
                structured_outputs=structured,
                detokenize=False,  # once at the end is cheaper than at every token
                output_kind=RequestOutputKind.FINAL_ONLY)
            self._engine.add_request(request.key, prompt, params)

    def _completion(self, output: Any) -> Completion:
        answer = output.outputs[0]
        reason = answer.finish_reason or UNKNOWN
        ids = list(answer.token_ids)
        ids = ids[:-1] if reason == STOP else ids  # the token that ends the answer
        text = self._tokenizer.decode(ids, skip_special_tokens=True)
        return Completion(text, len(output.prompt_token_ids), len(ids), reason)


def engine_arguments(model: Path, settings: VllmSettings) -> dict[str, Any]:
    """The arguments of vllm.LLM for these settings; `settings.arguments` win."""
    arguments = {
        "model": str(model), "tensor_parallel_size": settings.tensor_parallel_size, "dtype": settings.dtype,
        "quantization": settings.quantization, "enable_prefix_caching": settings.enable_prefix_caching,
        "max_model_len": settings.max_model_len,
    }
    return arguments | _cpu_arguments() | settings.arguments


def _open_llm(arguments: dict[str, Any]) -> Any:
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    from vllm import LLM

    try:
        return LLM(**arguments)
    except (TypeError, ValueError) as error:  # pydantic's errors are ValueErrors
        first = str(error).strip().splitlines()
        raise UserError(f"vLLM refuses its arguments (settings vllm.*): {' '.join(first[:3])}") from error


def _cpu_arguments() -> dict[str, Any]:
    """What vLLM's CPU build needs.

    bfloat16 and compilation are slow or missing there. Sampling with a seed of one's own fails (0.32) when a prefill is
    cut into chunks.
    """
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return {}
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    return {"dtype": "float32", "enforce_eager": True, "enable_chunked_prefill": False}
