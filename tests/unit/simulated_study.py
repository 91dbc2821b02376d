"""A simulated study in the formats that the stages agreed on: every artifact with its manifest and chain of hashes.

Only numbers are invented; folders are made by the same functions as real ones, so that lineage and report are tested.
"""

import hashlib
import json
import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from megatron_ext.artifacts import produce, publish_in_place, write_json

TASKS = {
    "tweetsentbr_greedy": {"metric": "f1-macro", "random_score": 32.4, "max_score": 100.0, "translated": False,
                           "labels": ["negativa", "neutra", "positiva"]},
    "enem_greedy": {"metric": "acc", "random_score": 0.2, "max_score": 1.0, "translated": False},
    "boolq_pt_greedy": {"metric": "acc", "random_score": 0.5, "max_score": 1.0, "translated": True},
    "logiqa_greedy": {"metric": "acc", "random_score": 0.25, "max_score": 1.0, "translated": True},
}
SKILLS = {"base": 0.46, "low": 0.50, "low_with_rewrites": 0.505, "high": 0.55, "high_with_rewrites": 0.62}
SOURCES = {"low": {"low": 1.0}, "low_with_rewrites": {"low": 0.6, "low_rewrites": 0.4},
           "high": {"high": 1.0}, "high_with_rewrites": {"high": 0.6, "high_rewrites": 0.4}}
PROMPT = "{task}/{index}"
CONTAMINATION = {"action": "report", "ngram": 13, "short_ngram": 8, "documents_hit": 17, "tasks": {
    "enem_greedy": {"items": 1510, "items_checked": 1498, "items_hit": 31, "documents_hit": 16},
    "boolq_pt_greedy": {"items": 300, "items_checked": 300, "items_hit": 0, "documents_hit": 0},
    "bluex_launch_version_greedy": {"items": 700, "items_checked": 690, "items_hit": 1, "documents_hit": 1}}}
STYLES = ["easy", "medium", "hard", "qa"]
BUDGET = 38_400
ITERATIONS = 24
PARITY = {"max_abs_difference": 3.1e-5, "kl_nats": 2.2e-10, "top1_agreement": 1.0, "num_positions": 2048,
          "dtype": "float32", "setting": "tp=1 pp=2 dp=1", "passed": True}
SOURCE_TEXT = ("A fotossíntese é o processo pelo qual as plantas, as algas e algumas bactérias convertem a energia da "
               "luz em energia química, guardada em açúcares.")


def write_evaluation(folder, model, skill, *, num_items=80, seed=0, tasks=TASKS, profile="official", data="official",
                     limit=None, item_seed=7, deviations=(), changes=(), engine=None, gold=None):
    """An evaluation artifact; items have a difficulty of their own that all models share.

    `gold`: how many bits a byte the model saves on right answers; None: no likelihoods.
    """
    limit = num_items if limit is None else limit

    def make(place):
        results, rows = {}, []
        for number, (task, info) in enumerate(tasks.items()):
            difficulty = np.random.default_rng([item_seed, number]).normal(0, 0.25, num_items)
            rng = np.random.default_rng([seed, number, 1])
            right = rng.random(num_items) < np.clip(skill + difficulty, 0.02, 0.98)
            new = [_example(task, info, index, bool(hit), rng) for index, hit in enumerate(right)]
            rows += new
            score = _score(info, new)
            npm = 100 * (score - info["random_score"]) / (info["max_score"] - info["random_score"])
            results[task] = {**{key: info[key] for key in ("metric", "random_score", "max_score", "translated")},
                             "score": score, "npm": npm, "num_examples": num_items,
                             "invalid_rate": float(np.mean(~right)) / 5, "metrics": {info["metric"]: score}}
        if gold is not None:
            (place / "gold.jsonl").write_text("".join(json.dumps(row) + "\n" for task in tasks for row in gold_rows(
                task, num_items, gold, seed, item_seed)))
        (place / "examples.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        write_json(place / "results.json", {
            "profile": profile, "data": data, "deviations": list(deviations),
            "model": {"content_hash": "0"}, "tasks": results, "task_set": sorted(tasks), "npm": _group_means(results)})
        return {"examples": len(rows), "changes": list(changes), **({"engine": engine} if engine else {})}

    return produce(folder, kind="evaluation", settings={"limit": limit, "profile": profile, "tasks": sorted(tasks)},
                   inputs={"model": model}, make=make)


def gold_rows(task, num_items, gold, seed, item_seed):
    """Rows of gold.jsonl: the loss of an item is its own, shared by all models, and a little noise."""
    for number, form in enumerate(("gold", "cloze")):
        own = np.random.default_rng([item_seed, number, len(task)]).gamma(4, 0.25, num_items)
        noise = np.random.default_rng([seed, number, len(task)]).normal(0, 0.05, num_items)
        for index in range(num_items):
            bits = float(max(0.01, own[index] - gold + noise[index]))
            options = [{"nats": 10 * math.log(2) * value, "bytes": 10, "num_tokens": 3} for value in (bits, 1.0, 1.3)]
            rank = 1 + sum(one["nats"] < options[0]["nats"] for one in options)
            yield {"task": task, "form": form, "doc_id": index, "source_id": None, "gold": 0, **options[0],
                   "prompt_sha256": hashlib.sha256(f"{form}/{task}/{index}".encode()).hexdigest(), "rank": rank,
                   "rank_per_byte": rank, "options": options, "num_dropped_tokens": 0, "splits_token": False}


def _example(task, info, index, hit, rng):
    if "labels" in info:
        target = info["labels"][index % 3]
        output = target if hit else str(rng.choice([label for label in [*info["labels"], "não sei"]
                                                    if label != target]))
        metrics = {"acc": 100 * hit, "f1-macro": [output, target]}
    else:
        target, output = "A", "A" if hit else "B"
        metrics = {"acc": float(hit)}
    prompt = hashlib.sha256(PROMPT.format(task=task, index=index).encode()).hexdigest()
    return {"task": task, "doc_id": index, "prompt_sha256": prompt, "output": output, "target": target,
            "metrics": metrics}


def _score(info, rows):
    values = [row["metrics"][info["metric"]] for row in rows]
    if "labels" not in info:
        return float(np.mean(values))
    scores = []
    for label in sorted({gold for _, gold in values}):
        hits = sum(pred == gold == label for pred, gold in values)
        scores.append(2 * hits / (sum(pred == label for pred, _ in values) + sum(gold == label for _, gold in values)))
    return 100 * float(np.mean(scores))


def _group_means(results):
    groups = {"all": list(results.values()), "native": [one for one in results.values() if not one["translated"]],
              "translated": [one for one in results.values() if one["translated"]]}
    return {name: float(np.mean([one["npm"] for one in members])) if members else None
            for name, members in groups.items()}


def evaluator(place):
    """evaluate(name, skill, …) -> folder of an evaluation, below `place`, of a model of its own."""
    def evaluate(name, skill=0.5, **options):
        model = produce(place / "models" / name, kind="hf_model", settings={"name": name}, inputs={},
                        make=lambda folder: {"bytes": (folder / "weights").write_text(name)})
        write_evaluation(place / name, model.path, skill, **options)
        return place / name

    return evaluate


def comparer(place):
    """run(evaluations, baseline, …) -> the content of a comparison that is made below `place`."""
    from evaluation.compare import CompareSettings, compare

    def run(evaluations, baseline, **settings):
        compare(CompareSettings(evaluations=evaluations, baseline=baseline, num_resamples=500, **settings),
                place / "comparison")
        return json.loads((place / "comparison" / "comparison.json").read_text())

    return run


def write_study(work, *, seeds=(0, 1, 2), num_items=80, conditions=tuple(SOURCES), notes=(), data="official"):
    """All artifacts of a study below `work`, and study.json; the comparison is made by evaluation.compare."""
    from evaluation.compare import CompareSettings, compare

    work = Path(work)
    study = _Writer(work, seeds, num_items, conditions, data)
    evaluations = study.write()
    baseline = "high" if "high" in conditions else conditions[0]
    interactions = {"rewriting × quality": ["high_with_rewrites", "high", "low_with_rewrites", "low"]}
    settings = CompareSettings(evaluations=evaluations, baseline=baseline, num_resamples=2000,
                               along_training=study.evaluate_along_training(evaluations),
                               interactions=interactions if len(conditions) == 4 else {})
    compare(settings, work / "compare")
    write_json(work / "study.json", study.record | {"comparison": "compare", "notes": list(notes)})
    return work / "study.json"


class _Writer:
    def __init__(self, work, seeds, num_items, conditions, data):
        self.work, self.seeds, self.num_items, self.conditions, self.data = work, seeds, num_items, conditions, data
        self.record = {
            "name": "quality-by-rewriting",
            "description": "Does rewriting Portuguese web text in four styles help a language model more when the text "
                           "was good to begin with?",
            "settings": {"base_model": "smollm2-135m", "seeds": list(seeds), "allow_differences": []},
            "parity": [{"name": "import/parity", **PARITY},
                       {"name": "export/high/seed0", **PARITY, "max_abs_difference": 2.9e-5}],
        }

    def write(self):
        work, record = self.work, self.record
        (work / "corpus").mkdir(parents=True)
        (work / "corpus" / "part-0.jsonl").write_text(json.dumps({"id": "1", "text": SOURCE_TEXT}) + "\n")
        base = self._model("model/base", "base", {"origin": work / "corpus" / "part-0.jsonl"})
        subsets = ["low", "high"]
        record["selections"] = {name: self._selection(name, base) for name in subsets}
        record["rewrites"] = {name: self._rewrites(name, base) for name in subsets}
        documents = record["selections"] | {f"{name}_rewrites": place for name, place in record["rewrites"].items()}
        record["tokenized"] = {name: self._tokenized(name, place, base) for name, place in documents.items()}
        base_evaluation = "evaluate/base"
        write_evaluation(work / base_evaluation, work / base, SKILLS["base"], num_items=self.num_items, seed=99,
                         data=self.data)
        record["base"] = {"model": base, "evaluation": base_evaluation}
        evaluations = {"base": [work / base_evaluation]}
        record["conditions"] = {}
        for condition in self.conditions:
            places = {str(seed): self._arm(condition, seed, base) for seed in self.seeds}
            record["conditions"][condition] = {"seeds": places}
            evaluations[condition] = [work / place["evaluation"] for place in places.values()]
        record["stages"] = self._stages()
        return evaluations

    def evaluate_along_training(self, final):
        """Condition -> tokens -> evaluations of three checkpoints, the last one included."""
        points = {condition: {BUDGET: final[condition]} for condition in self.conditions}
        for condition in self.conditions:
            for share in (1, 2):
                folders = [self.work / f"evaluate/{condition}/seed{seed}/at{share}" for seed in self.seeds]
                for seed, folder in zip(self.seeds, folders, strict=True):
                    skill = SKILLS["base"] + share / 3 * (SKILLS[condition] - SKILLS["base"])
                    write_evaluation(folder, self.work / "model/base", skill, num_items=self.num_items,
                                     seed=1000 * share + 100 * list(SKILLS).index(condition) + seed, data=self.data)
                points[condition][BUDGET * share // 3] = folders
        return points

    def _model(self, place, text, inputs):
        def make(folder):
            (folder / "model.safetensors").write_text(text)
            (folder / "config.json").write_text("{}")
            return {"parity": PARITY} if place.startswith("export") else {}

        produce(self.work / place, kind="hf_model", settings={}, inputs=inputs, make=make)
        return place

    def _selection(self, name, base):
        def make(folder):
            (folder / "documents").mkdir()
            pq.write_table(pa.table({"id": ["1"], "text": [name]}), folder / "documents" / "part-00000.parquet")
            stem = 3.1 if name == "high" else 1.2
            return {"documents": 412, "tokens": 240_118, "bytes": 870_412, "input_documents": 1204,
                    "rejected": {"rule": 640, "too_short": 9, "missing_score": 3, "duplicate_text": 12,
                                 "over_budget": 128},
                    "missing_tokens": 0, "mean_scores": {"stem": stem, "edu": stem + 0.2},
                    **({"contamination": CONTAMINATION} if name == "high" else {})}

        rule = "stem > 2.5 or edu > 2.5" if name == "high" else "0.5 <= stem <= 2.0 and 0.5 <= edu <= 2.0"
        produce(self.work / f"select/{name}", kind="selection", settings={"rule": rule, "budget_tokens": 240_000},
                inputs={"corpus": self.work / "corpus"}, make=make)
        return f"select/{name}"

    def _rewrites(self, name, base):
        def make(folder):
            (folder / "chunks").mkdir()
            pq.write_table(pa.Table.from_pylist([_chunk(name, style, index) for index in range(6) for style in STYLES]),
                           folder / "chunks" / "part-00000.parquet")
            styles = {style: {
                "num_chunks": 120, "num_survived": 96 - 11 * k, "survived_percent": (96 - 11 * k) / 1.2,
                "num_saved_by_retry": 6, "first_attempt_reasons": {},
                "reasons": {"too_short": 4 + 2 * k, "copied_source": 9, "wrong_language": 9 * k, "finish_length": 2},
                "num_source_tokens": 21_400, "num_survivor_source_tokens": 17_000 - 2000 * k,
                "num_survivor_tokens": 15_800 - 1700 * k, "length_ratio": 0.93, "num_prompt_tokens": 30_100,
                "num_completion_tokens": 24_000, "acceptance": {"num_source_tokens": {
                    "mean": 178.3, "survivor_mean": 160.1 - 10 * k, "bins": [
                        {"from": 12, "to": 150, "num_chunks": 60, "num_survived": 55, "survived_percent": 91.67},
                        {"from": 151, "to": 350, "num_chunks": 60, "num_survived": 41 - 11 * k,
                         "survived_percent": (41 - 11 * k) / 0.6}]}}} for k, style in enumerate(STYLES)}
            write_json(folder / "summary.json", {
                "selection": {"num_documents": 412, "num_chosen_documents": 60, "num_chunks": 120,
                              "num_chunks_left_out": 0},
                "rewrites": {"complete": 160, "partial": 33, "dropped": 0, "empty": 47, "tokens": 53_000},
                "styles": styles})
            return {"documents": 193, "tokens": 53_000}

        produce(self.work / f"rewrite/{name}", kind="rewrites", settings={"styles": STYLES, "engine": "transformers"},
                inputs={"documents": self.work / f"select/{name}", "model": self.work / base,
                        "tokenizer": self.work / base}, make=make)
        return f"rewrite/{name}"

    def _tokenized(self, name, documents, base):
        def make(folder):
            (folder / "train.bin").write_bytes(hashlib.sha256(name.encode()).digest() * 8)
            return {"train": {"documents": 370, "tokens": 216_000, "bytes": 780_000},
                    "valid": {"documents": 42, "tokens": 24_118, "bytes": 90_412}, "eod_token_id": 0, "vocab_size": 9,
                    "tokenizer_sha256": "5" * 64}

        produce(self.work / f"tokenize/{name}", kind="tokenized", settings={}, make=make,
                inputs={"documents": self.work / documents, "tokenizer": self.work / base})
        return f"tokenize/{name}"

    def _arm(self, condition, seed, base):
        run, export = f"run/{condition}/seed{seed}", f"export/{condition}/seed{seed}"
        evaluation = f"evaluate/{condition}/seed{seed}"
        checkpoint = self._run(run, condition, seed, base)
        self._model(export, f"{condition} {seed}", {"checkpoint": checkpoint})
        order = list(SKILLS).index(condition)
        skill = SKILLS[condition] + np.random.default_rng([seed, order]).normal(0, 0.004)
        write_evaluation(self.work / evaluation, self.work / export, skill, num_items=self.num_items,
                         seed=100 * order + seed, data=self.data)
        return {"run": run, "export": export, "evaluation": evaluation}

    def _run(self, place, condition, seed, base):
        folder = self.work / place
        tokenized = {name: self.work / f"tokenize/{name}" for name in SOURCES[condition]}
        inputs = {"model": self.work / base} | {f"source {name}": path for name, path in tokenized.items()}
        checkpoint = folder / "checkpoints" / f"iter_{ITERATIONS:07d}"
        checkpoint.mkdir(parents=True)
        (checkpoint / "weights.distcp").write_text(f"{condition} {seed}")
        publish_in_place(checkpoint, kind="checkpoint", settings={}, inputs=inputs, counts={"iteration": ITERATIONS})
        exposure = {name: {"available_tokens": 216_000, "seen_tokens": int(BUDGET * share),
                           "unique_tokens": int(BUDGET * share), "epochs": BUDGET * share / 216_000,
                           "planned_tokens": int(BUDGET * share)} for name, share in SOURCES[condition].items()}
        write_json(folder / "exposure.json", {"iteration": ITERATIONS, "sources": exposure})
        (folder / "config.yaml").write_text(yaml.safe_dump({
            "output": str(folder), "model": {"hf_folder": str(self.work / base), "dtype": "float32"},
            "data": {"seq_length": 200, "sources": {name: {"path": str(path)} for name, path in tokenized.items()}},
            "train": {"budget_tokens": BUDGET, "global_batch_size": 8, "seed": seed},
            "optimizer": {"lr": 1e-4, "weight_decay": 0.1}, "schedule": {"style": "cosine", "warmup_fraction": 0.05},
            "parallel": {"tensor_model_parallel_size": 1, "pipeline_model_parallel_size": 2}}))
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in _metrics(condition, seed)))
        publish_in_place(folder, kind="run", settings={"run": {"train": {"seed": seed}}}, inputs=inputs,
                         counts={"iterations": ITERATIONS, "tokens": BUDGET, "exposure": exposure,
                                 "checkpoint": f"checkpoints/iter_{ITERATIONS:07d}"})
        return checkpoint

    def _stages(self):
        seconds = {"model": 26, "select": 4, "rewrite": 148, "tokenize": 5, "import": 31, "run": 171, "export": 22,
                   "evaluate": 64, "compare": 6}
        names = ["model/base", "select/high", "select/low", "rewrite/high", "rewrite/low", "tokenize/high",
                 "import/parity"]
        names += [f"{stage}/{condition}/seed{seed}" for stage in ("run", "export", "evaluate")
                  for condition in self.conditions for seed in self.seeds]
        return [{"name": name, "seconds": seconds[name.split("/")[0]] * 1.0,
                 "num_devices": 2 if name.startswith("run/") else 1} for name in [*names, "compare/conditions"]]


def _metrics(condition, seed):
    rng = np.random.default_rng([seed, len(condition)])
    gain = {"low": 0.25, "low_with_rewrites": 0.3, "high": 0.4, "high_with_rewrites": 0.46}[condition]

    def validation(iteration):
        done = 1 - math.exp(-iteration / 8)
        return {"event": "validation", "iteration": iteration, "sources": {
            name: {"nats_per_token": start - gain * weight * done, "num_tokens": 24_000,
                   "bits_per_byte": (start - gain * weight * done) * 0.42}
            for name, start, weight in (("high", 4.05, 1.0), ("low", 4.21, 0.7))}}

    yield validation(0)
    for iteration in range(1, ITERATIONS + 1):
        loss = 4.1 - gain * (1 - math.exp(-iteration / 8)) + rng.normal(0, 0.03)
        yield {"event": "train", "iteration": iteration, "loss": loss, "grad_norm": 1.3, "lr": 1e-4,
               "tokens": iteration * 1600, "tokens_per_second": 118.0 + rng.normal(0, 2), "tflops_per_rank": 0.1,
               "loss_per_source": {name: loss + 0.05 * k for k, name in enumerate(SOURCES[condition])}}
        if iteration % 6 == 0:
            yield validation(iteration)


def _chunk(name, style, index):
    accepted = (index + len(style)) % 3 != 0
    easy = "As plantas usam a luz do sol para fazer o seu alimento. Esse processo se chama fotossíntese."
    bad = "A fotossíntese é a la photosynthese of the plants the energy is a energia energia energia"
    text = easy if accepted else bad
    return {"document_id": f"{name}-{index}", "chunk": 0, "num_chunks": 1, "style": style, "attempt": 0,
            "status": "accepted" if accepted else "rejected", "reasons": [] if accepted else ["wrong_language"],
            "source": SOURCE_TEXT, "output": text, "text": text, "num_source_tokens": 60, "num_tokens": 30}
