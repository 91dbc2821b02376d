"""Language packs: one folder a language, with all that rewriting and its checks know of it.

    lexicon.yaml          words, numbers, names, phrases      checking/lexicon.py
    thresholds.yaml       what a rewrite must meet, by style  checking/checks.py
    prompts/<style>.md    what the rewriter is told           prompts.py
    judge.yaml            what a judge is asked               judge/form.py
    judge_labelled.jsonl  pairs on which a judge is measured  judge/pairs.py
    labelled.jsonl        pairs on which the checks are

A language is named by its code, one of `languages/`, or by the path of a folder of one's own. How to add one:
docs/languages.md.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from megatron_ext.errors import UserError

LANGUAGES_FOLDER = Path(__file__).parent / "languages"
DEFAULT_LANGUAGE = "pt"
LANGUAGE = "language"
"""Setting that names one."""
LEXICON_FILE, THRESHOLDS_FILE, PROMPTS_FOLDER = "lexicon.yaml", "thresholds.yaml", "prompts"
FORM_FILE, LABELLED_FILE, JUDGE_LABELLED_FILE = "judge.yaml", "labelled.jsonl", "judge_labelled.jsonl"
PACK = "language_pack"
"""Key of a request: the content of a pack of one's own."""


def languages() -> list[str]:
    """Codes of the languages that there are."""
    return sorted(file.parent.name for file in LANGUAGES_FOLDER.glob(f"*/{LEXICON_FILE}"))


def is_folder(language: str) -> bool:
    """Whether a language is named by the path of a folder: it has a separator, which no code has."""
    return "/" in language or "\\" in language


def is_language(language: Any) -> bool:
    """Whether there is such a pack."""
    try:
        return isinstance(language, str) and language_folder(language).is_dir()
    except UserError:
        return False


def language_folder(language: str) -> Path:
    """The pack of a language. Raises UserError for one that is not there."""
    folder = Path(language).expanduser() if is_folder(language) else LANGUAGES_FOLDER / language
    if not is_folder(language) and language not in languages():
        raise UserError(f"language = {language!r}: there are {', '.join(languages())}; one of your own is named by the "
                        "path of its folder, ./xx (docs/languages.md)")
    if not (folder / LEXICON_FILE).is_file():
        raise UserError(f"language = {language!r}: {folder} is no language pack, it has no {LEXICON_FILE} "
                        "(docs/languages.md)")
    return folder


def pack_file(language: str, name: str) -> Path:
    """A file of a language's pack. Raises UserError where it lacks."""
    file = language_folder(language) / name
    if not file.exists():
        raise UserError(f"language = {language!r}: its pack lacks {file}")
    return file


def told_by_content(language: str) -> dict[str, str]:
    """What a request holds of a pack of one's own, instead of its path: the hash of its files; of others nothing."""
    return {PACK: _hash(language_folder(language))} if is_folder(language) else {}


def language_of(settings: Mapping[str, Any]) -> str:
    """The language of an artifact's request, for an HTML page; empty: a pack of one's own."""
    return "" if PACK in settings else str(settings.get(LANGUAGE, DEFAULT_LANGUAGE))


def check_keys(values: Mapping[str, Any], known: Collection[str], file: Path) -> None:
    """Raise UserError that names every missing and every unknown key of a pack's file."""
    missing, unknown = sorted(set(known) - values.keys()), sorted(map(str, values.keys() - set(known)))
    told = [f"{what} {', '.join(keys)}" for what, keys in (("lacks", missing), ("has unknown keys", unknown)) if keys]
    if told:
        raise UserError(f"{file}: {'; '.join(told)}")


def _hash(folder: Path) -> str:
    digest = hashlib.sha256()
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        for part in (str(file.relative_to(folder)).encode(), file.read_bytes()):
            digest.update(len(part).to_bytes(8, "big") + part)
    return digest.hexdigest()


@cache
def sentence_splitter(punkt_model: str):  # noqa: ANN201 (the package is imported only where texts are taken apart)
    """Punkt (Kiss and Strunk 2006) with the parameters that NLTK distributes for a language, by its English name."""
    import punkt

    return punkt.tokenizer_for(punkt_model, prefixes=True)


def has_punkt_model(name: str) -> bool:
    """Whether there are such parameters: without any, Punkt would go on and know no abbreviation."""
    import punkt

    try:
        punkt.load_model(name)
    except punkt.ModelError:
        return False
    return True
