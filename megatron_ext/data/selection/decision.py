"""Deciding, on numbers alone, which documents of a corpus are selected."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from megatron_ext.data.selection.contamination import Hits
from megatron_ext.data.selection.counting import Measured
from megatron_ext.data.selection.judging import PASSED, code_of
from megatron_ext.data.selection.near_duplicates import first_of_groups
from megatron_ext.data.selection.rows import Rows, first_of_equal, with_repeated_keys
from megatron_ext.data.selection.runs import Runs, open_run
from megatron_ext.data.selection.settings import SelectSettings
from megatron_ext.errors import UserError

_NAMED_DUPLICATES = 5
_LARGE_SHARE = 0.1  # of the budget in one document, which is said
_LARGE_EXCESS = 0.01  # over the budget
_FEW_DOCUMENTS = 100


@dataclass(frozen=True)
class Candidates:
    """All documents that lie in runs, in the order of selection, before the budget."""

    runs: Runs
    rows: Rows
    codes: np.ndarray  # uint8 [n]: PASSED or the code of a reason, duplicates included
    duplicates: dict[str, Any]
    """Counts of duplicates, for the manifest."""

    @property
    def places(self) -> np.ndarray:
        """Of those that nothing has rejected so far, int64, ascending."""
        return np.flatnonzero(self.codes == PASSED)


@dataclass(frozen=True)
class Decision:
    """What is selected."""

    chosen: np.ndarray  # int64: places of the selected documents
    codes: np.ndarray  # uint8 [n]: PASSED for those alone
    num_tokens: int
    """Tokens of the selected documents."""
    hits: Hits
    """Test items in the documents that were considered until the budget was reached."""


def find_candidates(runs: Runs, rows: Rows, settings: SelectSettings) -> Candidates:
    """Find duplicates among ordered documents, and reject them where the settings say so.

    Raises UserError when two documents that are left have the same id.
    """
    codes = rows.codes.copy()
    places = np.flatnonzero(codes == PASSED)
    is_first = first_of_equal(rows.text_hashes[places])
    duplicates: dict[str, Any] = {"exact": {"documents": int((~is_first).sum()), "action": settings.exact_duplicates}}
    if settings.exact_duplicates == "remove":
        codes[places[~is_first]] = code_of("duplicate_text")
        places = places[is_first]
    if settings.near_duplicates != "off":
        is_first = first_of_groups(rows.signatures[places])
        duplicates["near"] = {"documents": int((~is_first).sum()), "action": settings.near_duplicates}
        if settings.near_duplicates == "remove":
            codes[places[~is_first]] = code_of("near_duplicate")
            places = places[is_first]
    _refuse_repeated_ids(runs, rows, places, settings)
    return Candidates(runs, rows, codes, duplicates)


def decide(candidates: Candidates, measured: Measured, settings: SelectSettings) -> Decision:
    """Take documents in order until their tokens reach the budget.

    Raises UserError when all of them do not, unless the settings allow it.
    """
    places, codes = candidates.places, candidates.codes.copy()
    tokens = measured.counted_tokens(places, settings.contaminated == "remove")
    codes[places[_cut(tokens, settings):]] = code_of("over_budget")
    is_considered = codes[measured.hits.documents] == PASSED
    hits = Hits(measured.hits.documents[is_considered], measured.hits.items[is_considered])
    if settings.contaminated == "remove":
        codes[hits.documents] = code_of("contaminated")
    chosen = np.flatnonzero(codes == PASSED)
    num_tokens = int(measured.num_tokens[chosen].sum()) if settings.tokenizer else 0
    return Decision(chosen, codes, num_tokens, hits)


def _cut(tokens: np.ndarray, settings: SelectSettings) -> int:
    """How many documents, in order, reach the budget."""
    budget = settings.budget_tokens
    if budget is None:
        return len(tokens)
    ends = np.cumsum(tokens)
    total = int(ends[-1]) if len(ends) else 0
    if total < budget and settings.on_shortage == "error":
        epochs = f" (or {budget / total:.2f} epochs of them)" if total else ""
        raise UserError(f"{settings.corpus}: the {len(tokens):,} documents that pass have {total:,} tokens, fewer than "
                        f"budget_tokens = {budget:,}{epochs}. Lower the budget, widen the rule, or take them all with "
                        "on_shortage=allow")
    return min(int(np.searchsorted(ends, budget)) + 1, len(tokens))


def budget_notes(measured: Measured, decision: Decision, budget_tokens: int | None) -> list[str]:
    """What is odd about how the budget was reached, in words."""
    if budget_tokens is None or not len(decision.chosen):
        return []
    notes = []
    largest = int(measured.num_tokens[decision.chosen].max())
    if largest >= _LARGE_SHARE * budget_tokens:
        notes.append(f"one document alone has {largest:,} tokens, {largest / budget_tokens:.2g} times the budget of "
                     f"{budget_tokens:,}; max_chars rejects such documents")
    if decision.num_tokens > (1 + _LARGE_EXCESS) * budget_tokens:
        notes.append(f"the last document takes the selection to {decision.num_tokens / budget_tokens:.2g} times the "
                     "budget")
    if len(decision.chosen) < _FEW_DOCUMENTS:
        notes.append(f"{len(decision.chosen):,} documents fill the budget: what is measured with them rests on these "
                     "few")
    return notes


def _refuse_repeated_ids(runs: Runs, rows: Rows, places: np.ndarray, settings: SelectSettings) -> None:
    repeated = places[with_repeated_keys(rows.keys[places])]
    if not len(repeated):
        return
    names = []
    for place in repeated[:_NAMED_DUPLICATES]:
        run = rows.run[place]
        ids = open_run(runs.runs[run], ["id"]).column("id")
        names.append(f"{ids[rows.row[place]].as_py()!r} ({runs.shard_of(run, rows.row[place])})")
    more = f" and {len(repeated) - len(names):,} more" if len(repeated) > len(names) else ""
    raise UserError(f"{settings.corpus}: several documents have the same id: {', '.join(names)}{more}. Ids have to be "
                    "unique; choose another id_column, or id_column=null to make ids from the texts (then with "
                    "exact_duplicates=remove)")
