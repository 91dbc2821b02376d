"""Any endpoint with OpenAI's chat completions. The server applies the chat template of its model."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any

from megatron_ext.data.rewriting.engines.interface import (
    STOP,
    UNKNOWN,
    Answer,
    Completion,
    Request,
    Sampling,
    TakeBatch,
    failure,
)
from megatron_ext.data.rewriting.engines.openai_errors import (
    Undecodable,
    describe_failure,
    fatal,
    is_passing,
    seconds_to_wait,
)
from megatron_ext.data.rewriting.engines.settings import OpenaiSettings
from megatron_ext.errors import UserError


class OpenaiEngine:
    """Requests under way side by side, at most `concurrency`; busy or failing servers are asked again after a while."""

    def __init__(self, settings: OpenaiSettings, sampling: Sampling,
                 template_arguments: Mapping[str, Any] | None = None,
                 schema: Mapping[str, Any] | None = None) -> None:
        self._settings, self._sampling = settings, sampling
        self._client = _connect(settings)
        self._model = served_model(settings)
        self._extra_body = {**({"chat_template_kwargs": dict(template_arguments)} if template_arguments else {}),
                            **({"response_format": _response_format(schema)} if schema else {}),
                            **settings.extra_body}
        self._stopped = threading.Event()

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
                self._stopped.set()  # those that wait for a busy server
                pool.shutdown(wait=False, cancel_futures=True)

    def _complete(self, request: Request) -> Completion:
        """The answer, or how the last of `1 + max_retries` tries failed."""
        for num_tries in range(1, 2 + self._settings.max_retries):
            try:
                return self._read(self._send(request))
            except Exception as error:  # whatever a server and a library may come up with
                is_last = num_tries > self._settings.max_retries or not is_passing(error)
                if is_last and (mistake := fatal(error, self._settings)):
                    raise mistake from None
                if is_last:
                    return failure(describe_failure(error, num_tries, self._settings))
                if self._stopped.wait(seconds_to_wait(error, num_tries, request.seed)):
                    break
        return failure("the run was stopped")

    def _send(self, request: Request) -> Any:
        return self._client.chat.completions.create(
            model=self._model, messages=[{"role": "user", "content": request.prompt}], seed=request.seed,
            temperature=self._sampling.temperature, top_p=self._sampling.top_p, max_tokens=request.max_new_tokens,
            **({"extra_body": self._extra_body} if self._extra_body else {}))

    def _read(self, answer: Any) -> Completion:
        """Raises Undecodable for what is no chat completion, UserError when another model answers."""
        choices = getattr(answer, "choices", None)
        message = getattr(choices[0], "message", None) if choices else None
        if message is None:
            raise Undecodable(_excerpt(getattr(answer, "error", None) or answer))
        self._check_model(getattr(answer, "model", None))
        reason = getattr(choices[0], "finish_reason", None) or UNKNOWN
        usage = getattr(answer, "usage", None)
        # The token that ends an answer counts in `usage`, as it does with OpenAI, vLLM and their like.
        num_tokens = usage and usage.completion_tokens - (1 if reason == STOP else 0)
        return Completion(getattr(message, "content", None) or "", usage and usage.prompt_tokens, num_tokens, reason)

    def _check_model(self, name: str | None) -> None:
        expected = self._settings.answering_model or self._model
        # Providers answer an alias with the snapshot behind it: gpt-4o with gpt-4o-2024-08-06.
        if name and name != expected and not name.startswith(f"{expected}-"):
            raise UserError(f"{self._settings.base_url} was asked for the model {self._model!r} and answers with "
                            f"{name!r}: rewrites of two models must not mix. Serve {self._model!r} and run the same "
                            f"command again; if both names mean one model, set openai.answering_model={name}")


def served_model(settings: OpenaiSettings) -> str:
    """The name in `settings`, or that of the only model that the endpoint serves.

    Raises UserError when it serves several, does not answer, or refuses the key.
    """
    if settings.model:
        return settings.model
    try:
        names = [model.id for model in _connect(settings).with_options(max_retries=settings.max_retries).models.list()]
    except Exception as error:
        why = f"{settings.base_url}: {describe_failure(error, 1, settings)}"
        raise (fatal(error, settings) or UserError(f"{why}; name the model in openai.model")) from None
    if len(names) != 1:
        raise UserError(f"openai.model: name one of those that {settings.base_url} serves: "
                        f"{', '.join(names) or 'none'}")
    return names[0]


def _response_format(schema: Mapping[str, Any]) -> dict[str, Any]:
    """As OpenAI and vLLM's server take it."""
    return {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": dict(schema)}}


def _connect(settings: OpenaiSettings) -> Any:
    from openai import OpenAI

    return OpenAI(base_url=settings.base_url, api_key=os.environ.get(settings.api_key_variable, "none"), max_retries=0,
                  timeout=settings.timeout_seconds)


def _excerpt(answer: Any) -> str:
    return " ".join(str(answer).split())[:200]
