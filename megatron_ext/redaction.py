"""Secrets are left out of what is kept: settings, command lines, addresses, messages.

A value is secret by the name of its setting (`api_key`, `hf_token`, `Authorization`), by its form (keys of well-known
services), or as the user and password of an address.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

REDACTED = "<redacted>"
_KEY = (r"(?:api|access|secret|private|signing|encryption|account|subscription)[_-]?keys?|secrets?|passw(?:or)?ds?"
        r"|passphrases?|passwd|credentials?|authorization|cookies?|(?:access|auth|api|hf|hub|bearer|refresh|session|id"
        r"|github|gh|gitlab|wandb|private|security|identity)[_-]?tokens?")
_SECRET_NAME = re.compile(rf"(?:{_KEY}|^(?:token|pat|bearer))$", re.IGNORECASE)  # not `eos_token`, `budget_tokens`
_IN_TEXT = re.compile(rf"""((?:{_KEY}|\b(?<![\w.-])token)["']?\s*[=:]\s*["']?(?:Bearer\s+|Basic\s+)?)[^\s"',;&}}]+""",
                      re.IGNORECASE)
_IN_ADDRESS = re.compile(r"""(\b[a-z][a-z0-9+.-]*://)[^\s/@:"']*:[^\s"']*@""", re.IGNORECASE)
_BY_FORM = re.compile(
    r"\b(?:sk-[\w-]{16,}|hf_\w{20,}|gh[pousr]_\w{20,}|github_pat_\w{20,}|glpat-[\w-]{16,}|xox[abprs]-[\w-]{10,}"
    r"|A(?:KI|SI)A[0-9A-Z]{16}|AIza[\w-]{30,}|eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]+)"
    r"|(?<=Bearer )[^\s\"']{8,}|-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*?(?:-----END [A-Z ]*PRIVATE KEY-----|$)")


def redact(value: Any, name: str = "") -> Any:
    """A JSON value without secrets; `name` is the setting that holds it."""
    if isinstance(value, Mapping):
        return {key: redact(one, str(key)) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [redact(one, name) for one in value]
    if _SECRET_NAME.search(name) and value not in (None, "", False, True):
        return REDACTED
    return redact_text(value) if isinstance(value, str) else value


def redact_text(text: str) -> str:
    """A text without the secrets that can be recognised in it."""
    text = _IN_ADDRESS.sub(rf"\1{REDACTED}@", text)
    return _BY_FORM.sub(REDACTED, _IN_TEXT.sub(rf"\1{REDACTED}", text))


def redact_arguments(arguments: Sequence[str]) -> list[str]:
    """A command line without secrets: `--api-key VALUE`, `section.api_key=VALUE`, and those within values."""
    kept: list[str] = []
    for before, argument in zip(["", *arguments], arguments, strict=False):
        name, is_setting, _ = argument.partition("=")
        if before.startswith("-") and "=" not in before and _SECRET_NAME.search(before.lstrip("-")):
            kept.append(REDACTED)
        elif is_setting and _SECRET_NAME.search(name.lstrip("-").rsplit(".", 1)[-1]):
            kept.append(f"{name}={REDACTED}")
        else:
            kept.append(redact_text(argument))
    return kept
