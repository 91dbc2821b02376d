"""How programs end: a user's mistake is one clear message and exit code 2, Ctrl-C one line and exit code 130."""

from __future__ import annotations

import errno
import functools
import hashlib
import os
import platform
import select
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

from megatron_ext.processes import start_of
from megatron_ext.redaction import redact_text

MISTAKE, FAULT, INTERRUPTED = 2, 1, 130
_USERS_TO_MEND = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS)
_IMPOSSIBLE_PATHS = (errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.EEXIST)
_EXIT_OF_SIGPIPE = 141


class UserError(ValueError):
    """Bad input. The message says what is wrong, where, and how to mend it."""


def exit_on_user_error(main: Callable[..., int | None]) -> Callable[..., int]:
    """Wrap a program's `main`: a mistake that the user can mend becomes one line on stderr and exit code 2.

    Of the processes that torchrun started, one on each node tells of an error, with its rank and host: the cause may be
    that node's alone. A fault of ours keeps its traceback.
    """

    @functools.wraps(main)
    def wrapper(*args: object, **kwargs: object) -> int:
        try:
            code = main(*args, **kwargs) or 0
            sys.stdout.flush()
            return code
        except KeyboardInterrupt:
            _tell("interrupted: what is finished stays, and the same command goes on")
            return INTERRUPTED
        except Exception as error:
            if _reader_has_left(error):
                return _EXIT_OF_SIGPIPE
            message = users_mistake(error)
            if message is not None:
                _tell(message)
                return MISTAKE
            if not _is_one_of_many():
                raise
            _tell(f"{type(error).__name__}: {error}", "".join(traceback.format_exception(error)))
            return FAULT

    return wrapper


def _reader_has_left(error: Exception) -> bool:
    """Whether the error is that nobody reads our output any more (`… | head`); what is left of it is dropped."""
    if not isinstance(error, BrokenPipeError):
        return False
    output = select.poll()
    output.register(sys.stdout.fileno(), 0)
    if not any(event & select.POLLERR for _, event in output.poll(0)):
        return False  # another pipe's trouble
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True


def users_mistake(error: Exception) -> str | None:
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


def _tell(message: str, details: str = "") -> None:
    message, details = redact_text(message), redact_text(details)
    if not _is_one_of_many():
        print(f"error: {message}", file=sys.stderr, flush=True)
    elif _is_first_to_tell(message):
        who = f"rank {os.environ.get('RANK')} on {platform.node()}"
        print(f"{details}error: {message} [{who}]", file=sys.stderr, flush=True)


def _is_one_of_many() -> bool:
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def _is_first_to_tell(message: str) -> bool:
    """Whether no other process that the same torchrun started on this node has told the same."""
    launch = f"{os.getppid()} {start_of(os.getppid())} {os.environ.get('TORCHELASTIC_RUN_ID')} {message}"
    name = f"megatron_ext-{hashlib.sha256(launch.encode(errors='replace')).hexdigest()[:16]}.told"
    try:
        os.close(os.open(Path(tempfile.gettempdir()) / name, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    except OSError:  # better told twice than never
        return True
    return True


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
