"""The language of a study, which all that rewrites and judges has unless its own settings name another."""

from __future__ import annotations

from typing import Any

from megatron_ext.data.rewriting.packs import DEFAULT_LANGUAGE, LANGUAGE, is_folder, is_language


def hand_down(values: Any) -> Any:
    """The values of a study file with its language in the settings of rewriters and judge; nothing for the default."""
    language = values.get(LANGUAGE, DEFAULT_LANGUAGE) if isinstance(values, dict) else DEFAULT_LANGUAGE
    if language == DEFAULT_LANGUAGE or not is_language(language):
        return values
    sections = {name: _in_language(values[name], language) for name in ("rewriter", "judge") if name in values}
    more = values.get("more_rewriters")
    if isinstance(more, dict):
        sections["more_rewriters"] = {name: _in_language(one, language) for name, one in more.items()}
    return values | sections


def is_code(key: str, text: str) -> bool:
    """Whether a text at a key names a language by its code: no folder of that name is meant."""
    return key.split(".")[-1] == LANGUAGE and not is_folder(text)


def _in_language(section: Any, language: str) -> Any:
    settings = section.get("settings") or {} if isinstance(section, dict) else None
    return section | {"settings": {LANGUAGE: language} | settings} if isinstance(settings, dict) else section
