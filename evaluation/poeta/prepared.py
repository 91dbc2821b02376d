"""Tasks ready to be asked: prompts are rendered once and kept on disk for every model that follows.

The cache is keyed by the task's row (profile, shots, limit …), the bytes of its raw data and the bytes of this code, so
whatever could change a prompt makes another entry. It lies below `cache_folder()/prompts`, one file a task.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from evaluation.poeta import sources
from evaluation.poeta.chance import chance_level
from evaluation.poeta.families import load_task
from evaluation.poeta.prompts import Request, build_requests
from evaluation.poeta.table import Profile
from evaluation.poeta.task import Cloze, Document, Task
from megatron_ext.artifacts import hash_file, hash_json
from megatron_ext.files import replacing

_CODE = Path(__file__).parent


@dataclass(frozen=True)
class PreparedTask:
    """A task with the requests that are evaluated."""

    task: Task
    """Its row holds the random score of the profile."""
    requests: list[Request]
    num_whole: int
    """Requests that the profile asks for without a limit of the user's."""
    data: sources.Origin

    @property
    def name(self) -> str:
        """Official name."""
        return self.task.spec.name


def prepare(name: str, profile: Profile, found: Mapping[str, sources.Found], limit: int | None = None) -> PreparedTask:
    """A task's requests, from the cache or built from its raw data.

    Args:
        found: where the raw data lies, see `sources.find_raw_data`.
        limit: take only the first `limit` requests of the profile; their prompts do not depend on it.

    Raises UserError when the raw data is damaged.
    """
    task = load_task(name, profile)
    hashes = {raw_name: found[raw_name].sha256 for raw_name in task.spec.raw_names()}
    key = hash_json({"row": task.spec.model_dump(), "raw_data": hashes, "code": _code_hash()})
    place = sources.cache_folder() / "prompts" / f"{name}-{profile}-{key[:32]}.jsonl.gz"
    kept = _read(place)
    if kept is None:
        kept = _build(task, found)
        with suppress(OSError):  # a cache that cannot be written only costs the time to build again
            _write(place, *kept)
    random_score, requests = kept
    task.spec = task.spec.model_copy(update={"random_score": random_score})
    origin = sources.least_official(found[raw_name].origin for raw_name in hashes)
    return PreparedTask(task, requests[:limit], len(requests), origin)


def _build(task: Task, found: Mapping[str, sources.Found]) -> tuple[float, list[Request]]:
    loaded = task.load(sources.open_raw_data(task.spec, found))
    is_clean = task.spec.profile == "clean"
    random_score = chance_level(task, loaded.documents) if is_clean else task.spec.random_score
    return random_score, build_requests(task, loaded)


def _read(place: Path) -> tuple[float, list[Request]] | None:
    """Random score and requests; None when they are not there or damaged."""
    try:
        with gzip.open(place, "rt", encoding="utf-8", newline="\n") as file:
            header, *rows = (json.loads(line) for line in file)
    except (OSError, EOFError, ValueError):
        return None
    requests = [Request(doc_id, _document(row["document"]), row["prompt"], row["cloze_prompt"])
                for doc_id, row in enumerate(rows)]
    return header["random_score"], requests


def _document(row: dict[str, Any]) -> Document:
    form = row["cloze"] and Cloze(row["cloze"]["text"], tuple(row["cloze"]["options"]))
    return Document(**{**row, "options": tuple(row["options"]), "cloze": form})


def _write(place: Path, random_score: float, requests: list[Request]) -> None:
    rows: list[dict[str, Any]] = [{"random_score": random_score}]
    rows += [{"document": asdict(request.document), "prompt": request.prompt, "cloze_prompt": request.cloze_prompt}
             for request in requests]
    place.parent.mkdir(parents=True, exist_ok=True)
    with (replacing(place) as temporary,
          gzip.open(temporary, "wt", compresslevel=1, encoding="utf-8", newline="\n") as file):
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


@cache
def _code_hash() -> str:
    files = [path for path in sorted(_CODE.rglob("*")) if path.suffix in (".py", ".json", ".yaml")]
    return hash_json({str(path.relative_to(_CODE)): hash_file(path) for path in files})
