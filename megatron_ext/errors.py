"""A user's mistake: one clear message, exit code 2, no traceback."""

from __future__ import annotations

import errno
import functools
import os
import sys
from collections.abc import Callable, Iterator

_USERS_TO_MEND = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS)


class UserError(ValueError):
    """Bad input. The message says what is wrong, where, and how to mend it."""


def exit_on_user_error(main: Callable[..., int | None]) -> Callable[..., int]:
    """Wrap a program's `main`: a mistake that the user can mend becomes one line on stderr and exit code 2."""

    @functools.wraps(main)
    def wrapper(*args: object, **kwargs: object) -> int:
        try:
            return main(*args, **kwargs) or 0
        except Exception as error:
            message = _users_mistake(error)
            if message is None:
                raise
            print(f"error: {message}", file=sys.stderr, flush=True)
            return 2

    return wrapper


def _users_mistake(error: Exception) -> str | None:
    """What to tell the user, or None when the fault is ours."""
    if isinstance(error, UserError):
        return str(error)
    for cause in _causes(error):
        if isinstance(cause, OSError) and cause.errno in _USERS_TO_MEND:
            return _storage_message(cause.filename, cause.strerror)
        # safetensors and torch wrap the system's error in one of their own, as text.
        if os.strerror(errno.ENOSPC) in str(cause):
            return _storage_message(None, os.strerror(errno.ENOSPC))
    return None


def _storage_message(place: str | None, what: str) -> str:
    where = f"{place}: " if place else ""
    return (f"{where}{what}. Free space or choose another folder, then run the same command again: it goes on where it "
            "stopped")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:  # libraries raise errors that are their own cause
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
