"""What `--dry-run` of an evaluation tells: the model's folder, the tasks, and where their raw data is."""

from __future__ import annotations

from collections.abc import Iterator

from evaluation.poeta import sources
from evaluation.poeta.run import PoetaSettings, check_model
from evaluation.poeta.suites import check_suites
from evaluation.poeta.table import expand_names, task_spec
from evaluation.suites.catalogue import task_names
from megatron_ext.errors import UserError


def describe_evaluation(settings: PoetaSettings) -> Iterator[str]:
    """Lines. Raises UserError where there is no model, or raw data that could not be had."""
    check_model(settings)
    check_suites(settings.suites)
    for name, suite in settings.suites.items():
        yield f"suite {name}: {', '.join(task_names(suite))}"
    names = expand_names(settings.tasks)
    if not names:
        return
    yield f"tasks: {len(names)} ({', '.join(names[:5])}{', …' if len(names) > 5 else ''}), profile {settings.profile}"
    try:
        found = sources.find_raw_data([task_spec(name) for name in names], settings.data, allow_download=False,
                                      allow_sample=settings.allow_sample_data)
        yield f"raw data: {len(found)} files are at hand"
    except UserError as error:
        if not settings.allow_download:
            raise
        yield f"raw data that would be fetched: {error}"
