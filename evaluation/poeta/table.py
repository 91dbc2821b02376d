"""The table of PoETa V2 (`data/tasks.yaml`): what the official configuration fixes for each task."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Literal

import yaml
from pydantic import Field

from megatron_ext.errors import UserError
from megatron_ext.settings import Settings, validate

DATA = Path(__file__).parent / "data"
OFFICIAL_MAX_GEN_TOKS = 2048

Profile = Literal["official", "clean"]
"""official: prompts, scores, limits and quirks of the official harness. clean: no few-shot example that is the
evaluated question, chance levels computed from the data, no undefined score, whole test sets."""

LikelihoodMeasure = Literal["gold_bits_per_byte", "gold_accuracy", "cloze_bits_per_byte", "cloze_accuracy"]
"""gold: of the official prompt and its answer; cloze: of the question without its options and the text of one of them.
bits_per_byte: of the right answer; accuracy: whether it is the likeliest option (cloze: the likeliest per byte)."""


class TaskSpec(Settings):
    """One task of the official configuration."""

    name: str
    """Official name."""
    family: str
    """Class of `evaluation.poeta.families` that reads and scores it."""
    files: tuple[str, ...] = ()
    """Raw files, as paths below a data folder."""
    evaluation_file: str | None = None
    """File of the evaluated documents, where `files` hold only the few-shot pool."""
    hub: str | None = None
    """Instead of files: a data set of the Hugging Face hub."""
    hub_config: str | None = None
    """Configuration of that data set; none: its default."""
    splits: tuple[str, ...] = ()
    """Splits of that data set that are read; of two, the first holds the few-shot examples."""
    description: str | None
    """Key of `data/description.json`; none: the prompt has no description."""
    pool: Literal["train", "all", "other_ids", "other_exams"]
    """Where few-shot examples come from: a split of their own; the evaluated documents, the current one included;
    those of another id; those of another exam."""
    num_fewshot: int
    """Examples in a prompt."""
    limit: int | None
    """Documents that are evaluated after shuffling; none: all."""
    metric: str
    """The metric that counts for NPM."""
    random_score: float
    """Score that stands for guessing, on the metric's scale; copied as it is even where it looks wrong."""
    max_score: float
    """Best score, on the metric's scale."""
    likelihood_measures: tuple[LikelihoodMeasure, ...]
    """Measures of `scoring=[generate, gold]` that make sense for the task; only these enter means. The likelihood of a
    letter or of one of a few labels measures a prior, so that only its rank among the options counts."""
    translated: bool
    """Whether the profile counts the task as translated (else as native)."""
    native_in_fact: bool = False
    """Written in Portuguese, though the official configuration says translated; clean counts it as native."""
    profile: Profile = "official"
    """The protocol that the row is for."""
    prefix: str = ""
    """BigBench format: text before the input."""
    option_names: dict[str, str] = Field(default_factory=dict)
    """BigBench format: names of options in the raw data and in the prompt."""
    classes: tuple[str, ...] = ()
    """BigBench format with spelled answers: the words that are looked for in an output."""

    def raw_names(self) -> list[str]:
        """Names of everything raw that the task reads: paths of files, or `hub/<data set>/<config>/<split>`."""
        if self.hub is None:
            return [*self.files, *([self.evaluation_file] if self.evaluation_file else [])]
        return [f"hub/{self.hub}/{self.hub_config or 'default'}/{split}" for split in self.splits]

    def normalise(self, score: float) -> float:
        """Normalised preferred metric: 0 for guessing, 100 for the best; not clipped; NaN stays NaN."""
        return 100 * (score - self.random_score) / (self.max_score - self.random_score)

    def cleaned(self) -> TaskSpec:
        """The row for the profile clean; its random score is known when the documents are."""
        translated = self.translated and not self.native_in_fact
        return self.model_copy(update={"profile": "clean", "limit": None, "translated": translated})


@cache
def task_table() -> Mapping[str, TaskSpec]:
    """All tasks by name, in the official order."""
    path = DATA / "tasks.yaml"
    rows = yaml.safe_load(path.read_text(encoding="utf-8"))["tasks"]
    return {name: validate(TaskSpec, {"name": name, **row}, where=f"{path}: {name}") for name, row in rows.items()}


def task_names() -> list[str]:
    """Names of the 44 tasks, in the official order."""
    return list(task_table())


def task_spec(name: str, profile: Profile = "official") -> TaskSpec:
    """The row of one task. Raises UserError for an unknown name."""
    try:
        spec = task_table()[name]
        return spec.cleaned() if profile == "clean" else spec
    except KeyError:
        near = difflib.get_close_matches(name, task_names(), n=1, cutoff=0.3)
        raise UserError(f"PoETa V2 has no task {name!r}" + (f"; did you mean {near[0]!r}?" if near else "")) from None


def expand_names(names: Sequence[str]) -> list[str]:
    """The named tasks in official order, each once; `all` stands for the 44. Raises UserError for unknown names."""
    wanted = {task_spec(name).name for name in names if name != "all"}
    return [name for name in task_names() if "all" in names or name in wanted]


@cache
def descriptions() -> Mapping[str, str]:
    """The official descriptions by key."""
    return json.loads((DATA / "description.json").read_text(encoding="utf-8"))
