"""A user's mistake: one clear message, exit code 2, no traceback."""

from __future__ import annotations

import errno
import functools
import os
import sys
from collections.abc import Callable, Iterator

_USERS_TO_MEND = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS)
_IMPOSSIBLE_PATHS = (errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.ELOOP)
_EXIT_OF_SIGPIPE = 141


class UserError(ValueError):
    """Bad input. The message says what is wrong, where, and how to mend it."""


def exit_on_user_error(main: Callable[..., int | None]) -> Callable[..., int]:
    """Wrap a program's `main`: a mistake that the user can mend becomes one line on stderr and exit code 2."""

    @functools.wraps(main)
    def wrapper(*args: object, **kwargs: object) -> int:
        try:
            code = main(*args, **kwargs) or 0
            sys.stdout.flush()
            return code
        except Exception as error:
            if _reader_has_left(error):
                return _EXIT_OF_SIGPIPE
            message = _users_mistake(error)
            if message is None:
                raise
            print(f"error: {message}", file=sys.stderr, flush=True)
            return 2

    return wrapper


def _reader_has_left(error: Exception) -> bool:
    """Whether the error is that nobody reads our output any more (`… | head`); what is left of it is dropped."""
    if not isinstance(error, BrokenPipeError):
        return False
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False


def _users_mistake(error: Exception) -> str | None:
    """What to tell the user, or None when the fault is ours."""
    if isinstance(error, UserError):
        return str(error)
    for cause in _causes(error):
        if isinstance(cause, OSError) and cause.errno in _USERS_TO_MEND:
            return _storage_message(cause.filename, cause.strerror)
        if isinstance(cause, OSError) and cause.errno in _IMPOSSIBLE_PATHS and cause.filename:
            return f"{cause.filename}: {cause.strerror}; give another path"
        # safetensors and torch wrap the system's error in one of their own, as text.
        if os.strerror(errno.ENOSPC) in str(cause):
            return _storage_message(None, os.strerror(errno.ENOSPC))
    return None


def _storage_message(place: str | None, what: str) -> str:
    where = f"{place}: " if place else ""
    return (f"{where}{what}. Free space or choose another folder, then run the same command again: it goes on where it "
            "stopped")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
