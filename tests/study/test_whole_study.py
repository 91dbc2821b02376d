"""All eight stages, from the shipped corpus to the report, with a tiny model: the graph that the quickstart runs."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from megatron_ext.artifacts import Artifact
from tests.unit.tiny_chat_model import make_tiny_chat_model

pytestmark = pytest.mark.slow
CORPUS = Path("examples/quickstart/corpus")
TRAINED = ("low", "high")


def study_values(model):
    return {
        "name": "tiny", "description": "Does the machinery run?",
        "corpus": {"path": str(CORPUS)}, "base_model": str(model),
        "subsets": {
            "high": {"rule": "stem > 2.5 or edu > 2.5", "budget_tokens": 20000},
            "low": {"rule": "0.5 <= stem <= 2.0 and 0.5 <= edu <= 2.0", "budget_tokens": 20000},
        },
        "tokenize": {"valid_fraction": 0.2},
        "rewriter": {"model": str(model), "subsets": ["high"], "note": "a random model",
                     "settings": {"max_documents": 2, "max_chunks_per_document": 1, "chunk_tokens": 60, "retries": 0,
                                  "max_new_tokens_ratio": 0.5, "styles": ["easy", "qa"], "min_survived_fraction": 0}},
        "run": {"model": {"dtype": "float32"}, "data": {"seq_length": 64},
                "train": {"budget_tokens": 16 * 4 * 64, "global_batch_size": 4},
                "optimizer": {"lr": 1e-3, "min_lr": 1e-4},
                "parallel": {"pipeline_model_parallel_size": 2}, "checkpoint": {"interval_tokens": 2 * 4 * 64},
                "validation": {"max_tokens_per_source": 100_000}},
        "conditions": {
            "low": {"sources": {"low": {"fill": True}}},
            "high": {"sources": {"high": {"fill": True}}},
            "high_with_rewrites": {"sources": {"high": {"fill": True}, "high_rewrites": {"epochs": 1}}},
        },
        "validation": {"neutral": "examples/quickstart/neutral"},
        "evaluation": {"baseline": "low", "primary": "neutral", "checkpoints": [8 * 4 * 64],
                       "settings": {"tasks": ["tweetsentbr_greedy"], "limit": 3, "allow_sample_data": True,
                                    "max_gen_toks": 4}},
    }


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    (folder / "study.yaml").write_text(yaml.safe_dump(study_values(make_tiny_chat_model(folder / "tiny"))))
    return folder


def start(study, work=None):
    return subprocess.Popen([sys.executable, "-m", "tools.run_study", str(study / "study.yaml"), "--work",
                             str(work or study / "work")], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                            env={**os.environ, "POETA_DATA": "", "XDG_CACHE_HOME": str(study / "cache")})


def run(study):
    process = start(study)
    output, _ = process.communicate(timeout=1800)
    assert process.returncode == 0, output
    return output


@pytest.fixture(scope="module")
def finished(study):
    """The study, killed once in the middle of a training run, then run to its end."""
    process = start(study)
    deadline = time.monotonic() + 300
    while not list((study / "work").glob("run/*/*/checkpoints/latest")) and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    return run(study)


def one(study, pattern):
    found = list((study / "work").glob(pattern))
    assert len(found) == 1, f"{pattern}: {found}"
    return found[0]


def test_what_was_finished_before_the_kill_is_not_run_again(finished):
    assert "tokenize/low: up to date" in finished
    assert "resumed after iteration" in finished or "run/low/seed0: up to date" in finished


def test_logits_are_equal_after_import_and_after_export(study, finished):
    record = json.loads((study / "work" / "study-tiny.json").read_text())
    assert len(record["parity"]) == 5  # one import, two exports of each run
    assert all(verdict["passed"] and verdict["max_abs_difference"] < 1e-3 for verdict in record["parity"])


def test_held_out_loss_falls_in_every_condition(study, finished):
    before = json.loads((one(study, "validate/base-*") / "losses.json").read_text())
    for condition in TRAINED:
        after = json.loads((one(study, f"validate/{condition}/seed0-*") / "losses.json").read_text())
        assert before.keys() == after.keys() == {"high", "low", "neutral"}  # no rewrite survived to be held out
        for source, losses in before.items():
            if source != "neutral":
                assert after[source]["nats_per_token"] < losses["nats_per_token"]
            assert after[source]["num_tokens"] == losses["num_tokens"]


def test_the_study_ends_with_a_verdict_in_bits_a_byte_of_its_neutral_text(study, finished):
    comparison = json.loads((one(study, "compare/held_out-*") / "held_out.json").read_text())
    assert comparison["missing"] == ["high_with_rewrites"]
    texts = {text["name"]: text for text in comparison["texts"]}
    assert list(texts) == ["high", "low", "neutral"]
    assert texts["neutral"]["num_clusters"] == 66
    assert (texts["neutral"]["is_neutral"], texts["neutral"]["trained_on_by"]) == (True, [])
    assert texts["low"]["trained_on_by"] == ["low"]
    report = json.loads((one(study, "report/tiny-*") / "report.json").read_text())
    assert report["verdict"]["text"].startswith("On “neutral” text ")
    assert "n\u00a0=\u00a066 documents of “neutral”" in report["verdict"]["verdicts"][0]


def test_a_condition_without_survivors_is_refused_and_the_others_are_compared(study, finished):
    assert "run/high_with_rewrites/seed0: refused: it would see nothing of high_rewrites" in finished
    assert "evaluate/high_with_rewrites/seed0: not run, for want of export/high_with_rewrites/seed0" in finished
    comparison = json.loads((one(study, "compare/conditions-*") / "comparison.json").read_text())
    assert set(comparison["conditions"]) == {"base", "low", "high"}
    assert comparison["missing"] == ["high_with_rewrites"]
    assert any("high_with_rewrites" in caveat for caveat in comparison["caveats"])
    page = (one(study, "report/tiny-*") / "report.html").read_text()
    assert "is missing: run/high_with_rewrites/seed0: error: it would see nothing" in page.replace("&#39;", "'")


def test_an_undisturbed_study_elsewhere_has_the_same_content_everywhere(study, finished, tmp_path):
    """The first was killed on the way; only the report's request, which holds times, names another folder."""
    process = start(study, tmp_path / "elsewhere")
    output, _ = process.communicate(timeout=1800)
    assert process.returncode == 0, output
    here, there = contents(study / "work"), contents(tmp_path / "elsewhere")
    assert len(here) > 25
    assert here == there


def contents(work):
    """Content hash of every artifact by its place, the report's without its identity."""
    return {re.sub(r"^(report/tiny)-.*", r"\1", str(manifest.parent.relative_to(work))):
            json.loads(manifest.read_text())["content_hash"] for manifest in work.rglob("manifest.json")}


def test_a_checkpoint_along_training_is_evaluated_though_later_ones_were_saved(study, finished):
    record = json.loads((study / "work" / "study-tiny.json").read_text())
    for condition in TRAINED:
        seed = record["conditions"][condition]["seeds"]["0"]
        along = record["along_training"][condition]["0"]
        assert list(along) == ["8"]
        kept = {path.name for path in (study / "work" / seed["run"] / "checkpoints").glob("iter_???????")}
        assert kept == {"iter_0000008", "iter_0000014", "iter_0000016"}
        earlier, last = (Artifact.open(study / "work" / place, kind="evaluation")
                         for place in (along["8"]["evaluation"], seed["evaluation"]))
        assert earlier.manifest["request"]["inputs"] != last.manifest["request"]["inputs"]


def test_exported_models_load_in_transformers(study, finished):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = one(study, "export/low/seed0-*")
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    logits = model(**tokenizer("O céu é azul.", return_tensors="pt")).logits
    assert logits.shape[-1] == model.config.vocab_size


def test_report_names_its_sources_and_chains_back_to_the_corpus(study, finished):
    report = one(study, "report/tiny-*")
    page = (report / "report.html").read_text()
    for text in ("tiny", "high_with_rewrites", "a random model", "sample"):
        assert text in page
    assert "http://" not in page.replace("http://www.w3.org", "")  # self-contained
    selection = Artifact.open(one(study, "select/high-*"))
    assert selection.content_hash[:8] in page


def test_a_second_run_does_nothing(study, finished):
    started = time.monotonic()
    output = run(study)
    assert "everything is up to date" in output
    assert time.monotonic() - started < 60


def test_one_changed_byte_is_found_by_following_the_chain(study, finished):
    report = one(study, "report/tiny-*")
    tokens = one(study, "tokenize/low-*") / "train.bin"
    verify = [sys.executable, "-m", "tools.verify_artifact", str(report), "--raw", str(CORPUS)]
    intact = tokens.read_bytes()
    assert subprocess.run(verify, capture_output=True, text=True).returncode == 0
    try:
        tokens.write_bytes(bytes([intact[0] ^ 1]) + intact[1:])
        broken = subprocess.run(verify, capture_output=True, text=True)
        assert broken.returncode == 1
        assert str(tokens) in broken.stdout + broken.stderr
    finally:
        tokens.write_bytes(intact)


def test_corpus_without_the_score_column(study):
    process = subprocess.run(
        [sys.executable, "-m", "tools.run_study", str(study / "study.yaml"), "--work", str(study / "other"),
         "corpus.scores={stem: stem_rating, edu: edu_score}"], capture_output=True, text=True)
    assert process.returncode == 2
    assert "stem_rating" in process.stderr
    assert "stem_score" in process.stderr  # the columns there are
    assert not (study / "other").exists()


def test_tensor_parallel_size_that_does_not_divide_the_heads(study):
    process = subprocess.run(
        [sys.executable, "-m", "tools.run_study", str(study / "study.yaml"), "--work", str(study / "work"),
         "run.parallel.tensor_model_parallel_size=3"], capture_output=True, text=True)
    assert process.returncode == 2
    assert "tensor_model_parallel_size 3 does not divide" in process.stderr
    assert "Traceback" not in process.stdout + process.stderr
