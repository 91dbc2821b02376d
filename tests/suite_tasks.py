"""Tasks of lm-evaluation-harness with local data: choices, free answers, a whole text, and one of the harness' own."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

COLOURS = ("azul", "verde", "vermelho", "amarelo")
_LOCAL = {"dataset_path": "json", "test_split": "test", "fewshot_split": "test"}
_METRIC = {"aggregation": "mean", "higher_is_better": True}


def write_suite_tasks(folder: Path, num_items: int = 12) -> Path:
    """Write `cores` (multiple choice), `somas` (generate until), `prosa` (rolling likelihood), all of the tag
    `tudo_meu`, and `contas`, the harness' arithmetic with local data; returns the folder, which is an include_path."""
    folder.mkdir(parents=True)
    _write(folder, "cores", [
        {"question": f"A bandeira número {number} tem {number % 7} faixas da cor", "choices": list(COLOURS),
         "label": number * 3 % 4} for number in range(num_items)],
        output_type="multiple_choice", doc_to_text="{{question}}", doc_to_target="{{label}}", doc_to_choice="choices",
        metric_list=[{"metric": "acc", **_METRIC}, {"metric": "acc_norm", **_METRIC}])
    _write(folder, "somas", [{"question": f"{number} + {number % 5} =", "answer": str(number + number % 5)}
                             for number in range(num_items)],
           output_type="generate_until", doc_to_text="Conta: {{question}}", doc_to_target="{{answer}}",
           generation_kwargs={"until": ["\n"], "max_gen_toks": 6, "do_sample": False},
           metric_list=[{"metric": "exact_match", **_METRIC}])
    _write(folder, "prosa", [{"text": f"No ano {1900 + number}, a vila tinha {number * 37} casas. " * (1 + number % 4)}
                             for number in range(num_items)],
           output_type="loglikelihood_rolling", doc_to_text="", doc_to_target="{{text}}", fewshot_split=None,
           metric_list=[{"metric": "bits_per_byte"}, {"metric": "word_perplexity"}])
    _rows(folder / "contas.jsonl", ({"context": f"Question: What is {number} plus 4?\nAnswer:",
                                     "completion": f" {number + 4}"} for number in range(num_items)))
    arithmetic = Path(str(find_spec("lm_eval").origin)).parent / "tasks" / "arithmetic" / "arithmetic_1dc.yaml"
    (folder / "contas.yaml").write_text(yaml.safe_dump({
        "include": str(arithmetic), "task": "contas", "tag": "tudo_meu",
        "dataset_kwargs": {"data_files": {"validation": str(folder / "contas.jsonl")}}}))
    return folder


def _write(folder: Path, name: str, rows: Iterable[Mapping[str, Any]], **config: Any) -> None:
    _rows(folder / f"{name}.jsonl", rows)
    values = {"task": name, "tag": "tudo_meu", **_LOCAL, **config,
              "dataset_kwargs": {"data_files": {"test": str(folder / f"{name}.jsonl")}}}
    (folder / f"{name}.yaml").write_text(yaml.safe_dump({key: one for key, one in values.items() if one is not None}))


def _rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
