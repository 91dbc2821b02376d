"""What guessing scores: chance levels computed from the documents, for the profile clean."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from evaluation.poeta.metrics import macro_f1, mean
from evaluation.poeta.task import Document, Task


def chance_level(task: Task, documents: Sequence[Document]) -> float:
    """Expected preferred metric, on its own scale, of a model that picks each offered answer equally often.

    0 for free answers. For macro F1 the limit of many documents.
    """
    if any(document.num_options is None for document in documents):
        return 0.0
    if task.aggregations[task.spec.metric] is macro_f1:
        return task.spec.max_score * _chance_of_macro_f1(documents)
    return task.spec.max_score * mean([1 / document.num_options for document in documents])


def _chance_of_macro_f1(documents: Sequence[Document]) -> float:
    """A label of share p, guessed with probability q, has precision p and recall q."""
    golds = Counter(document.gold for document in documents)
    shares = [count / len(documents) for count in golds.values()]
    guess = 1 / documents[0].num_options
    return mean([2 * share * guess / (share + guess) for share in shares])
