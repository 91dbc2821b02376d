"""A paragraph for the methods section of a paper, made from what a study really did."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from evaluation.report.plots import short_count
from evaluation.report.record import StudyRecord, joined, label, model_label
from evaluation.statistics import LEVEL
from evaluation.verdicts import ALPHA, MIN_ITEMS, count

_PACKAGES = ("megatron-core", "torch", "transformers", "lm-eval")
_MATCHED = {"tokens": "tokens of training", "documents": "documents of the corpus",
            "compute": "compute, that of rewriting included"}
Numbers = Mapping[str, Any]


def methods_paragraph(record: StudyRecord, numbers: Numbers) -> str:
    """One sentence or two for each stage that has run. `numbers`: evaluation.report.page.gather's."""
    sentences = [*_selection(record, numbers), *_rewriting(record, numbers), *_training(numbers), *_evaluation(numbers),
                 *_statistics(numbers), *_software(numbers)]
    return " ".join(f"{one}." for one in sentences)


def _selection(record: StudyRecord, numbers: Numbers) -> Iterator[str]:
    subsets = [f"“{one['name']}” ({'rule ' + one['rule'] if one['rule'] else 'all documents'}; "
               f"{count(one['documents'], 'document')}, {short_count(one['tokens'])} tokens)"
               for one in numbers["selection"]]
    corpus = model_label(_settings(record).get("corpus", {}).get("path"))
    if subsets:
        yield f"From {corpus or 'a scored corpus'} we selected {_many(subsets, 'the subset')}"
    actions = {(one["contamination"]["ngram"], one["contamination"]["action"]) for one in numbers["selection"]
               if one["contamination"]}
    for ngram, action in sorted(actions):
        yield (f"Documents that share {ngram} consecutive words with a test item were "
               f"{'removed' if action == 'remove' else 'counted and kept'}")


def _rewriting(record: StudyRecord, numbers: Numbers) -> Iterator[str]:
    artifacts, rewriting = record.named("rewrites"), numbers["rewriting"]
    for (name, artifact), subset in zip(artifacts.items(), rewriting["subsets"] if rewriting else [], strict=True):
        sampling = artifact.settings.get("sampling", {})
        drawn = ", ".join(f"{label(key)} {value:g}" for key, value in sampling.items()
                          if isinstance(value, (int, float)))
        styles = [f"“{one['style']}”" for one in subset["styles"]]
        yield (f"{_rewriter(record, name)} rewrote chunks of “{subset['name']}” in "
               f"{_many(styles, 'the style')}{f' ({drawn})' if drawn else ''}; each rewrite was checked against its "
               f"source, and {subset['num_survived']:,} of {subset['num_chunks']:,} ({short_count(subset['tokens'])} "
               "tokens) were kept")


def _rewriter(record: StudyRecord, name: str) -> str:
    """The model that wrote the rewrites of this name, as the study names it."""
    settings = _settings(record)
    others = {**settings.get("more_rewriters", {})}
    chosen = next((one for key, one in others.items() if name.endswith(f"_{key}")), None) or settings.get("rewriter")
    return model_label((chosen or {}).get("model")) or "A language model"


def _training(numbers: Numbers) -> Iterator[str]:
    training = numbers["training"]
    if not training:
        return
    contract = training["contract"]
    differing = [one["key"] for one in contract["differing"]] + ([] if contract["same_base"] else ["starting weights"])
    alone = f"in their training data and in {joined(differing)}" if differing else "in their training data alone"
    base = numbers["base_model"] or "the base model"
    yield (f"We continued the pretraining of {base} in {count(len(training['blends']), 'condition')} that differ "
           f"{alone}: {'; '.join(_blend(one) for one in training['blends'])}")
    seeds = f"{count(len(contract['seeds']), 'seed')} a condition ({', '.join(map(str, contract['seeds']))})"
    told = [_setting(one) for one in contract["shared"] if one["value"] is not None
            and not one["name"].startswith("budget") and not one["name"].endswith("parallel")]
    yield f"Each run ended at {training['budget_tokens']:,} tokens, with {seeds}, {', '.join(told)}"
    if training["trunk"]:
        yield (f"All runs left one checkpoint of a common run after {training['trunk']['tokens']:,} tokens and are "
               "independent from there on alone")
    if parity := [one for one in numbers["parity"] if one["passed"]]:
        worst = max(one["max_abs_difference"] for one in parity)
        yield (f"Conversions of weights kept the logits ({count(len(parity), 'check')}, largest absolute difference "
               f"{worst:.1e})")


def _setting(shared: Numbers) -> str:
    """`sequence length 4,096 tokens`."""
    name, _, unit = shared["name"].partition(", ")
    value = shared["value"]
    told = f"{value:,}" if isinstance(value, int) else str(value)
    return f"{name} {told}" + (f" {unit}" if unit in ("tokens", "samples") else "")


def _blend(blend: Numbers) -> str:
    parts = [f"{short_count(part['tokens'])} tokens of “{part['label']}” ({part['epochs']:.2f} epochs)"
             for part in blend["parts"]]
    return f"“{blend['condition']}” saw {joined(parts)}"


def _evaluation(numbers: Numbers) -> Iterator[str]:
    if results := numbers["results"]:
        yield (f"Models were evaluated on {count(results['num_tasks'], 'task')} of PoETa V2 "
               f"({count(results['num_items'], 'item')}, {results['data']} data) by its {results['profile']} protocol, "
               "scored by the normalised preferred metric (NPM) averaged over tasks")
        if results["matched_by"]:
            yield f"Conditions were matched by {_MATCHED[results['matched_by']]}"
    if held_out := numbers["held_out"]:
        texts = [f"“{text['label']}” ({count(text['num_documents'], 'document')}"
                 f"{', on which no condition was trained' if text['is_neutral'] else ''})"
                 for text in held_out["texts"]]
        yield f"Held-out loss was measured in bits a byte, document by document, on {joined(texts)}"
    if gold := numbers["gold"]:
        measures = [part["title"].lower() for part in gold["measures"]]
        yield f"The benchmark's right answers were also compared by likelihood ({'; '.join(measures)})"
    if judged := numbers["judged"]:
        yield (f"{judged['judge'] or 'An instruct model'} judged a random sample of the accepted rewrites, and "
               "labelled rewrites beside them")


def _statistics(numbers: Numbers) -> Iterator[str]:
    compared = numbers["results"] or numbers["held_out"]
    if not compared:
        return
    yield (f"Differences are paired by item; intervals of {100 * LEVEL:.0f} % are bootstrap percentiles over "
           f"{compared['num_resamples']:,} resamples, widened for few items"
           + (" and for the spread between seeds" if _num_seeds(numbers) > 1 else
              "; one run a condition, so they do not cover the choice of seed"))
    test = "t tests" if _num_seeds(numbers) > 1 else "permutation tests, answer by answer,"
    yield (f"p values come from {test} and were corrected by Holm's method within each family of comparisons; a "
           f"difference is claimed when its interval leaves out 0, at least {MIN_ITEMS} items were measured and the "
           f"corrected p is at most {ALPHA:g}")
    if registered := numbers["registration"]:
        edits = f", and edited afterwards {count(len(registered['edits']), 'time')}" if registered["edits"] else ""
        yield (f"The primary outcome ({registered['primary']}) was registered before the first run "
               f"(sha256 {registered['sha256'][:16]}{edits})")


def _software(numbers: Numbers) -> Iterator[str]:
    versions = {one["name"]: one["version"] for one in numbers["software"]["packages"]}
    if told := [f"{name} {versions[name]}" for name in _PACKAGES if name in versions]:
        commits = numbers["software"]["commits"]
        yield f"Software: {', '.join(told)}" + (f"; code at commit {', '.join(commits)}" if commits else "")


def _num_seeds(numbers: Numbers) -> int:
    return len(numbers["training"]["contract"]["seeds"]) if numbers["training"] else 1


def _many(parts: list[str], one: str) -> str:
    return f"{one}{'s' if len(parts) > 1 else ''} {joined(parts)}"


def _settings(record: StudyRecord) -> Mapping[str, Any]:
    return record.values.get("settings") or {}
