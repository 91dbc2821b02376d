"""What can be wrong with a submission, found before any job starts, all at once."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from megatron_ext.artifacts import is_finished
from megatron_ext.errors import UserError
from megatron_ext.study.config import planned_run
from megatron_ext.study.contract import check_contract
from megatron_ext.study.cost import Forecast, reads_originals_alone
from megatron_ext.study.graph import Inside, Node
from megatron_ext.study.jobs import Job, PlannedStudy
from megatron_ext.study.runner import check_node
from megatron_ext.study.site import CHECK_SITE, Site

_PROBE = "Ação, coração e 3,14 pães: não há «fim»?\n\tÀs 10h, it's over."


def check_places(studies: Sequence[PlannedStudy], work: Path, site: Site) -> None:
    """Raise one UserError that lists every place that is missing or cannot be written, before models are fetched."""
    _refuse([*_site_problems(site, work), *_corpus_problems(studies)])


def check_studies(studies: Sequence[PlannedStudy], jobs: Sequence[Job], work: Path) -> None:
    """Raise one UserError that lists every problem of the studies whose models are fetched, with its mend."""
    _refuse([*_study_problems(studies, work), *_checkpoint_problems(jobs, work)])


def _refuse(problems: Sequence[str]) -> None:
    if problems:
        raise UserError("nothing was submitted:\n" + "\n".join(f"  - {problem}" for problem in problems))


def _corpus_problems(studies: Sequence[PlannedStudy]) -> Iterator[str]:
    for planned in studies:
        path = planned.study.corpus.path
        if not path.exists():
            yield f"{planned.study.name}: corpus.path {path} does not exist"


def _site_problems(site: Site, work: Path) -> Iterator[str]:
    done = subprocess.run(["bash", str(CHECK_SITE)], env={**os.environ, "SITE": str(site.file)}, capture_output=True,
                          text=True)
    told = [line.removeprefix("error: ") for line in done.stderr.splitlines()]
    yield from told if done.returncode else []
    if problem := _unwritable(work):
        yield f"--work {work} cannot be written ({problem}): choose a folder that is yours and that all nodes share"


def _unwritable(folder: Path) -> str | None:
    """Why nothing can be written there; a folder that is not there yet is tried above."""
    place = folder
    while not place.exists() and place != place.parent:
        place = place.parent
    if not place.is_dir():
        return f"{place} is no folder"
    try:
        with tempfile.TemporaryFile(dir=place):
            return None
    except OSError as error:
        return os.strerror(error.errno or 0)


def _study_problems(studies: Sequence[PlannedStudy], work: Path) -> Iterator[str]:
    for planned in studies:
        study = planned.study
        runs = {condition: planned_run(study, condition, study.seeds[0]) for condition in study.conditions}
        checks = [lambda study=study, runs=runs: check_contract(runs, study.allow_differences),
                  lambda planned=planned: _check_tokenizers(planned, work)]
        checks += [lambda node=node: check_node(node, work, data_is_there=False) for node in planned.nodes]
        forecast = Forecast(study.cost, work)
        checks += [lambda node=node, forecast=forecast: _check_blend(node, forecast) for node in planned.nodes
                   if node.stage == "run" and reads_originals_alone(node)]
        told: set[str] = set()
        for check in checks:
            try:
                check()
            except UserError as error:
                if str(error) not in told:
                    yield f"{study.name}: {error}"
                told.add(str(error))


def _check_blend(run: Node, forecast: Forecast) -> None:
    try:
        forecast.blend(run)
    except UserError as error:
        raise UserError(f"{run.name}: {error}") from None


def _check_tokenizers(planned: PlannedStudy, work: Path) -> None:
    """A tokenizer that a study names besides its base model's must give the same ids."""
    nodes = {node.name: node for node in planned.nodes}
    if "model/tokenizer" not in nodes:
        return
    from megatron_ext.data.tokenizers import load_tokenizer

    base, other = (load_tokenizer(nodes[name].output(work)) for name in ("model/base", "model/tokenizer"))
    if base.vocab_size != other.vocab_size or _ids(base) != _ids(other):
        raise UserError(f"tokenizer {planned.study.tokenizer} and that of {planned.study.base_model} give other ids; "
                        "remove `tokenizer` from the study file")


def _ids(tokenizer: object) -> list[int]:
    import pyarrow as pa

    return tokenizer.encoder.encode(pa.array([_PROBE], pa.string())).ids.tolist()  # type: ignore[attr-defined]


def _checkpoint_problems(jobs: Sequence[Job], work: Path) -> Iterator[str]:
    """Checkpoints that a finished run no longer has, though they are to be exported."""
    for job in jobs:
        source = job.node.inputs.get("checkpoint") if job.node else None
        if isinstance(source, Inside) and _is_lost(source, job.node, work):
            yield (f"{job.name}: the finished run {source.node.output(work)} did not keep {source.folder}; "
                   "evaluation.checkpoints must be set before a run starts")


def _is_lost(source: Inside, export: Node | None, work: Path) -> bool:
    run = source.node.output(work)
    with suppress(UserError):
        return (is_finished(run) and not is_finished(run / source.folder)
                and export is not None and not is_finished(export.output(work)))
    return False
