"""Any endpoint with OpenAI's chat completions. The server applies the chat template of its model."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any

from megatron_ext.data.rewriting.engines.interface import Answer, Completion, Request, Sampling, TakeBatch
from megatron_ext.data.rewriting.engines.open import OpenaiSettings
from megatron_ext.errors import UserError


class OpenaiEngine:
    """Requests under way side by side, at most `concurrency`; busy or failing servers are asked again after a while."""

    def __init__(self, settings: OpenaiSettings, sampling: Sampling) -> None:
        from openai import OpenAI

        self._settings, self._sampling = settings, sampling
        self._client = OpenAI(base_url=settings.base_url, api_key=os.environ.get(settings.api_key_variable, "none"),
                              max_retries=settings.max_retries, timeout=settings.timeout_seconds)
        self._model = self._choose_model()

    def answer(self, take: TakeBatch) -> Iterator[Answer]:
        """See Engine."""
        under_way: dict[Future[Completion], Request] = {}
        with ThreadPoolExecutor(self._settings.concurrency) as pool:
            try:
                while True:
                    while len(under_way) < self._settings.concurrency and (batch := take()):
                        under_way |= {pool.submit(self._complete, request): request for request in batch}
                    if not under_way:
                        return
                    for done in wait(under_way, return_when=FIRST_COMPLETED).done:
                        yield under_way.pop(done), done.result()
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _complete(self, request: Request) -> Completion:
        try:
            answer = self._client.chat.completions.create(
                model=self._model, messages=[{"role": "user", "content": request.prompt}], seed=request.seed,
                temperature=self._sampling.temperature, top_p=self._sampling.top_p, max_tokens=request.max_new_tokens)
        except Exception as error:
            raise self._explained(error) from error
        choice, usage = answer.choices[0], answer.usage
        is_cut = choice.finish_reason == "length"
        # The token that ends an answer counts in `usage`, as it does with OpenAI, vLLM and their like.
        num_tokens = usage.completion_tokens - (0 if is_cut else 1)
        return Completion(choice.message.content or "", usage.prompt_tokens, num_tokens, "length" if is_cut else "stop")

    def _choose_model(self) -> str:
        if self._settings.model:
            return self._settings.model
        try:
            names = [model.id for model in self._client.models.list()]
        except Exception as error:
            raise self._explained(error) from error
        if len(names) != 1:
            raise UserError(f"openai.model: name one of those that {self._settings.base_url} serves: "
                            f"{', '.join(names) or 'none'}")
        return names[0]

    def _explained(self, error: Exception) -> Exception:
        """What a user can mend, as UserError; anything else as it is."""
        import openai

        place, variable = self._settings.base_url, self._settings.api_key_variable
        if isinstance(error, openai.AuthenticationError | openai.PermissionDeniedError):
            return UserError(f"{place} refuses the key; set the environment variable {variable} "
                             "(openai.api_key_variable)")
        if isinstance(error, openai.NotFoundError):
            return UserError(f"{place} knows no model {self._settings.model!r}, or openai.base_url is wrong (it mostly "
                             f"ends with /v1): {_message(error)}")
        if isinstance(error, openai.BadRequestError):
            return UserError(f"{place} refuses a request; if a prompt is too long for its model use a smaller "
                             f"chunk_tokens: {_message(error)}")
        if isinstance(error, openai.APITimeoutError):
            return UserError(f"{place} gave no answer within {self._settings.timeout_seconds:g} s, tried "
                             f"{self._settings.max_retries + 1} times (openai.timeout_seconds, openai.max_retries)")
        if isinstance(error, openai.APIConnectionError):
            return UserError(f"{place} cannot be reached ({error.__cause__ or error}); is the server running?")
        if isinstance(error, openai.APIStatusError):
            return UserError(f"{place} answers with status {error.status_code}, tried {self._settings.max_retries + 1} "
                             f"times: {_message(error)}. Run the same command again to go on")
        return error


def _message(error: Any) -> str:
    return " ".join(str(error).split())[:500]
