"""A user's mistake: one clear message, exit code 2, no traceback."""

from __future__ import annotations

import errno
import functools
import os
import sys
from collections.abc import Callable


class UserError(ValueError):
    """Bad input. The message says what is wrong, where, and how to mend it."""


def exit_on_user_error(main: Callable[..., int | None]) -> Callable[..., int]:
    """Wrap a program's `main`: a mistake that the user can mend becomes one line on stderr and exit code 2."""

    @functools.wraps(main)
    def wrapper(*args: object, **kwargs: object) -> int:
        try:
            return main(*args, **kwargs) or 0
        except UserError as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
        except OSError as error:
            # A full disk or a forbidden folder is the user's to mend; any other OSError is a fault of ours.
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
                raise
            place = error.filename or os.getcwd()
            print(f"error: {place}: {error.strerror}. Free space or choose another folder, then run the same command"
                  " again: it goes on where it stopped.", file=sys.stderr, flush=True)
        return 2

    return wrapper
