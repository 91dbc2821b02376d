"""What goes wrong between us and an endpoint: what passes by itself, what every request would meet, how it is told."""

from __future__ import annotations

import email.utils
import time
from typing import Any

from megatron_ext.data.rewriting.engines.settings import OpenaiSettings
from megatron_ext.errors import UserError

_PASSING_STATUS = (408, 409, 425, 429)
_FIRST_WAIT_SECONDS, _LONGEST_WAIT_SECONDS = 0.5, 8.0
_MAX_MESSAGE = 500


class Undecodable(Exception):
    """A server answered something else than a chat completion."""


def is_passing(error: Exception) -> bool:
    """Whether the same request may succeed a little later."""
    import openai

    if isinstance(error, openai.APIStatusError) and not _is_success(error):
        return error.status_code in _PASSING_STATUS or error.status_code >= 500
    return not isinstance(error, UserError)


def fatal(error: Exception, settings: OpenaiSettings) -> UserError | None:
    """What a user can mend and every request would meet again, as UserError; None for what concerns this one."""
    import openai

    place = settings.base_url
    if isinstance(error, UserError):
        return error
    if isinstance(error, openai.AuthenticationError | openai.PermissionDeniedError):
        return UserError(f"{place} refuses the key; set the environment variable {settings.api_key_variable} "
                         "(openai.api_key_variable)")
    if isinstance(error, openai.NotFoundError):
        return UserError(f"{place} knows no model {settings.model!r}, or openai.base_url is wrong (it mostly ends with "
                         f"/v1): {_message(error)}")
    if type(error.__cause__).__name__ == "ConnectError":  # of whichever HTTP library lies beneath
        return UserError(f"{place} cannot be reached ({error.__cause__}); is the server running? Run the same command "
                         "again to go on")
    return None


def describe_failure(error: Exception, num_tries: int, settings: OpenaiSettings) -> str:
    """A line on a request that failed."""
    import openai

    tries = "tried once" if num_tries == 1 else f"tried {num_tries} times"
    if isinstance(error, openai.APITimeoutError):
        return f"no answer within {settings.timeout_seconds:g} s, {tries} (openai.timeout_seconds, openai.max_retries)"
    if isinstance(error, openai.APIStatusError) and not _is_success(error):
        return f"refused with status {error.status_code}, {tries}: {_message(error)}"
    what = "the connection broke off" if isinstance(error, openai.APIConnectionError) else "no chat completion"
    return f"{what}, {tries}: {_message(error.__cause__ or error)}"


def seconds_to_wait(error: Exception, num_tries: int, seed: int) -> float:
    """As long as the server asks for; else twice as long each time, and not all requests at the same moment."""
    asked = _retry_after(getattr(getattr(error, "response", None), "headers", {}))
    if asked is not None:
        return asked
    longest = min(_LONGEST_WAIT_SECONDS, _FIRST_WAIT_SECONDS * 2 ** (num_tries - 1))
    return longest * (0.75 + 0.25 * (seed % 1024) / 1024)


def _retry_after(headers: Any) -> float | None:
    """Seconds of the headers `retry-after-ms` and `Retry-After` (a number or a date); None without them."""
    milliseconds, value = headers.get("retry-after-ms"), headers.get("retry-after")
    for text, scale in ((milliseconds, 1000), (value, 1)):
        try:
            return max(0.0, float(text) / scale)
        except (TypeError, ValueError):
            continue
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (TypeError, ValueError):
        return None


def _is_success(error: Any) -> bool:
    return error.status_code < 400  # the library raises for bodies, too


def _message(error: Any) -> str:
    return " ".join(str(error).split())[:_MAX_MESSAGE] or type(error).__name__
