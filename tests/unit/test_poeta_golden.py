"""Every prompt and score of the 44 tasks against vectors made with the official harness."""

from __future__ import annotations

import base64
import json
import math
import os
from pathlib import Path
from typing import Any

import pytest

from evaluation.poeta import download, load_task, npm, task_names
from evaluation.poeta.prompts import build_requests
from evaluation.poeta.raw import RawData
from evaluation.poeta.table import task_spec

SHARED = Path(os.environ.get("MEGATRON_EXT_SHARED", Path(__file__).parents[3] / "shared")) / "poeta_v2"
GOLDEN = SHARED / "golden"
FILES = sorted(path for path in GOLDEN.glob("*.json") if path.name != "npm.json")
needs_vectors = pytest.mark.skipif(not FILES, reason=f"no golden vectors in {GOLDEN}")
SCENARIOS = ("all_right", "all_empty", "constant_first_target")


def lay_out(vectors: dict[str, Any], folder: Path) -> RawData:
    """The vectors' raw data as files, in the layout of a data folder."""
    spec = task_spec(vectors["task"])
    raw, places = vectors["raw_files"], {}
    for split, rows in raw.get("splits", {}).items():
        places[f"hub/{raw['dataset_id']}/{raw['config'] or 'default'}/{split}"] = (
            "\n".join(json.dumps(row, ensure_ascii=False) for row in rows).encode())
    for name, file in raw.get("files", {}).items():
        places[name] = _content(file)
    for name, content in places.items():
        path = folder / (f"{name}.jsonl" if name.startswith("hub/") else name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        places[name] = path
    assert set(spec.raw_names()) <= set(places)
    return RawData(spec, places)


def _content(file: dict[str, Any]) -> bytes:
    match file["encoding"]:
        case "utf-8":
            return file["content"].encode()
        case "base64":
            return base64.b64decode(file["content"])
        case "external":
            return (SHARED / file["local_copy"]).read_bytes()
    raise AssertionError(file["encoding"])


def same(ours: Any, official: Any) -> bool:
    """Equality with numbers to 1e-9 and NaN equal to NaN."""
    if isinstance(official, dict):
        return set(ours) == set(official) and all(same(ours[key], official[key]) for key in official)
    if isinstance(official, list):
        return len(ours) == len(official) and all(map(same, ours, official))
    if isinstance(official, str) or official is None:
        return ours == official
    return (math.isnan(ours) and math.isnan(official)) or ours == official or math.isclose(ours, official, rel_tol=1e-9)


def without(metrics: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in metrics.items() if name not in names}


@needs_vectors
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_vectors(path: Path, tmp_path: Path) -> None:
    vectors = json.loads(path.read_text())
    task = load_task(vectors["task"])
    requests = build_requests(task, task.load(lay_out(vectors, tmp_path)), vectors["limit"])
    check_prompts(requests, vectors)
    check_scores(task, requests, vectors)


def check_prompts(requests: list[Any], vectors: dict[str, Any]) -> None:
    assert len(requests) == len(vectors["requests"])
    for ours, official in zip(requests, vectors["requests"], strict=True):
        assert ours.doc_id == official["doc_id"]
        assert ours.prompt == official["prompt"]
        assert ours.document.target == official["target"]


def check_scores(task: Any, requests: list[Any], vectors: dict[str, Any]) -> None:
    def scores_of(outputs: list[str]) -> list[dict[str, Any]]:
        return [task.score(request.document, output) for request, output in zip(requests, outputs, strict=True)]

    def check_aggregated(scores: list[dict[str, Any]], official: dict[str, Any]) -> None:
        assert same(task.aggregate(scores), without(official, "num_examples"))

    is_singleton = task.spec.family in ("faquad", "mkqa")  # their vectors hold aggregates of one document
    scores = scores_of([official["canned_output"] for official in vectors["requests"]])
    check_aggregated(scores, vectors["aggregated"])
    assert same(npm.task_npm(task.spec.name, npm.preferred_score(task.spec.name, scores)), vectors["npm_task"])
    for ours, official in zip(scores, vectors["requests"], strict=True):
        if is_singleton:
            assert same(task.aggregate([ours]), official["singleton_aggregate"])
        else:
            assert same(without(ours, "invalid"), without(official["per_example_metrics"], "debug_info"))
    for scenario in vectors["extra_scoring"]:
        scores = scores_of(scenario["outputs"])
        check_aggregated(scores, scenario["aggregated"])
        if scenario["per_example_metrics"] and not is_singleton:
            official = [without(metrics, "debug_info") for metrics in scenario["per_example_metrics"]]
            assert same([without(metrics, "invalid") for metrics in scores], official)
    for case in vectors["scoring_battery"]:
        ours = task.score(requests[case["doc_id"]].document, case["output"])
        ours = task.aggregate([ours]) if is_singleton else without(ours, "invalid")
        assert same(ours, without(case["metrics"], "debug_info")), case


@needs_vectors
def test_npm_of_all_tasks() -> None:
    official = json.loads((GOLDEN / "npm.json").read_text())["scenarios"]
    scores: dict[str, dict[str, float]] = {scenario: {} for scenario in ("main", *SCENARIOS)}
    for name in task_names():
        vectors = json.loads((GOLDEN / f"{name}.json").read_text())
        metric = task_spec(name).metric
        scores["main"][name] = npm.task_npm(name, vectors["aggregated"][metric])
        for scenario in vectors["extra_scoring"]:
            if scenario["name"] in SCENARIOS:
                scores[scenario["name"]][name] = npm.task_npm(name, scenario["aggregated"][metric])
    for scenario, per_task in scores.items():
        expected = official[scenario]["npm.json"]
        assert same(per_task, expected["NPMPerTask"])
        means = npm.mean_npm(per_task)
        assert same([means["all"], means["translated"], means["native"]],
                    [expected["NPM.All"], expected["NPM.Translated"], expected["NPM.Native"]])


@needs_vectors
@pytest.mark.parametrize(("task", "folder"), [("enem_greedy", "data/enem"), ("massive_greedy", "data/MASSIVE")])
def test_official_archives_unpack_to_the_raw_files(task: str, folder: str, tmp_path: Path) -> None:
    raw = json.loads((GOLDEN / f"{task}.json").read_text())["raw_files"]
    (name, archive), = raw["archives"].items()
    (tmp_path / name).write_bytes(_content(archive))
    members = [Path(member).relative_to(folder) for member in task_spec(task).files]
    download.fetch_archive((tmp_path / name).as_uri(), members, tmp_path / "unpacked")
    for member in members:
        assert (tmp_path / "unpacked" / member).read_bytes() == _content(raw["files"][f"{folder}/{member}"])
