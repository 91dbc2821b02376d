"""PoETa V2: 44 tasks in Portuguese, with the prompts, scores and NPM of the official harness.

    from evaluation import poeta
    task = poeta.load_task("tweetsentbr_greedy")

A task is one row of `data/tasks.yaml` (shots, limits, scores) and one class of `families` (documents, text, scoring).
"""

from evaluation.poeta.families import load_task
from evaluation.poeta.table import Profile, TaskSpec, task_names, task_spec

__all__ = ["Profile", "TaskSpec", "load_task", "task_names", "task_spec"]
