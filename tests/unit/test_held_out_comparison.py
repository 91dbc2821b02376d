"""Verdicts in bits a byte: direction, clusters, one seed and several, and what a lower loss on one's own source is."""

import json

import numpy as np
import pytest

from evaluation.compare_held_out import CompareHeldOutSettings, compare_measurements
from evaluation.measures import BITS_PER_BYTE, NPM
from megatron_ext.artifacts import produce, write_text
from megatron_ext.errors import UserError

DOCUMENTS = 60


def write_held_out(folder, effects, *, seed=0, num_documents=DOCUMENTS, copies=1, noise=0.02, difficulty_seed=1,
                   settings=None):
    """Losses as the stage writes them: documents of many difficulties, which all models share.

    Args:
        effects: text -> bits a byte above the others.
        copies: how often each document is there, under one id.
    """
    rng = np.random.default_rng(seed)
    rows = []
    for number, (source, effect) in enumerate(effects.items()):
        shared = np.random.default_rng([difficulty_seed, number])
        sizes = shared.integers(200, 4000, num_documents)
        bits = shared.normal(1.4, 0.3, num_documents) + effect + rng.normal(0, noise, num_documents)
        rows += [{"source": source, "document_id": f"{source}-{i}", "cluster": f"{source}-{i}", "bytes": int(sizes[i]),
                  "tokens": int(sizes[i]) // 3, "nats": float(bits[i] * sizes[i] * np.log(2))}
                 for i in range(num_documents) for _ in range(copies)]

    def make(place):
        write_text(place / "documents.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
        return {}

    request = {"seq_length": 256, "stride": None, "dtype": "float32", "max_tokens_per_source": 10**6}
    return produce(folder, kind="held_out", settings=request | {"seed": seed} | (settings or {}), inputs={},
                   make=make).path


def study(tmp_path, effects, seeds=1, **how):
    """Condition -> text -> effect, compared."""
    folders = {name: [write_held_out(tmp_path / f"{name}{seed}", one, seed=[number, seed], **how)
                      for seed in range(1 if name == "base" else seeds)]
               for number, (name, one) in enumerate(effects.items())}
    return compare_measurements(CompareHeldOutSettings(
        held_out=folders, baseline="low", neutral=["neutral"], primary="neutral", num_resamples=1000,
        trained_on={"high": ["high"], "low": ["low"]}))


def difference(comparison, text="neutral", condition="high", reference="low"):
    (found,) = (one for part in comparison["texts"] if part["name"] == text for one in part["differences"]
                if (one["condition"], one["reference"]) == (condition, reference))
    return found


EFFECTS = {"base": {"neutral": 0.1, "high": 0.1, "low": 0.1}, "low": {"neutral": 0.02, "high": 0.06, "low": -0.05},
           "high": {"neutral": 0.0, "high": 0.0, "low": 0.0}}


def test_fewer_bits_are_better_and_the_verdict_says_so(tmp_path):
    comparison = study(tmp_path, EFFECTS)
    found = difference(comparison)
    assert found["estimate"]["low"] < -0.02 < found["estimate"]["high"] < 0
    assert found["is_claimed"] and found["counts"]
    assert found["verdict"].startswith("high is better on “neutral” than low: 0.017 bits a byte fewer, which is better")
    assert "covers the choice of documents alone" in found["verdict"]
    assert any("one training run a condition" in caveat for caveat in comparison["caveats"])


def test_learning_ones_own_source_makes_no_better_model(tmp_path):
    comparison = study(tmp_path, EFFECTS)
    for text, winner in (("high", "high"), ("low", "low")):
        found = difference(comparison, text)
        assert found["is_claimed"] and not found["counts"]
        assert f"{winner} was trained on that source, which by itself makes it no better model" in found["verdict"]
    against_base = difference(comparison, "high", "low", "base")
    assert against_base["counts"]  # better on the text of the other condition


def test_with_several_seeds_their_spread_counts_and_is_covered(tmp_path):
    comparison = study(tmp_path, EFFECTS, seeds=3)
    assert "This covers other documents and other seeds" in difference(comparison)["verdict"]
    assert not any("one training run" in caveat for caveat in comparison["caveats"])
    assert [len(one["per_seed"]) for one in comparison["texts"][0]["conditions"].values()] == [1, 3, 3]


def test_copies_of_documents_under_one_id_tell_nothing_more(tmp_path):
    once, often = (study(tmp_path / str(copies), EFFECTS, copies=copies) for copies in (1, 4))
    assert difference(once)["estimate"] == difference(often)["estimate"]
    assert [text["num_documents"] for text in often["texts"]] == [4 * DOCUMENTS] * 3
    assert [text["num_clusters"] for text in often["texts"]] == [DOCUMENTS] * 3


def test_too_few_documents_carry_no_claim(tmp_path):
    found = difference(study(tmp_path, EFFECTS, num_documents=29))
    assert not found["is_claimed"]
    assert "a claim needs at least 30 documents" in found["verdict"]
    assert "could have detected 0.0" in found["verdict"]


def test_equal_models_differ_in_nothing(tmp_path):
    same = {"neutral": 0.0}
    comparison = study(tmp_path, {"base": same, "low": same, "high": same}, noise=0.0)
    found = difference(comparison)
    assert (found["estimate"]["value"], found["is_claimed"]) == (0.0, False)
    assert found["verdict"].startswith("On “neutral” no difference can be claimed between high and low: 0.000 bits")


@pytest.mark.parametrize("how, told", [
    ({"settings": {"seq_length": 512}}, "seq_length"), ({"num_documents": 40}, "the documents of"),
    ({"difficulty_seed": 2}, "the documents of")])
def test_what_was_measured_in_another_way_is_refused(tmp_path, how, told):
    folders = {"low": [write_held_out(tmp_path / "low", {"neutral": 0.0})],
               "high": [write_held_out(tmp_path / "high", {"neutral": 0.0}, **how)]}
    with pytest.raises(UserError, match=told):
        compare_measurements(CompareHeldOutSettings(held_out=folders, baseline="low"))


@pytest.mark.parametrize("measure, difference, text", [
    (NPM, 0.04, "0.0"), (NPM, -3.14, "−3.1"), (BITS_PER_BYTE, -0.0205, "−0.021"), (BITS_PER_BYTE, -0.0004, "0.000")])
def test_numbers_are_printed_as_their_measure_declares(measure, difference, text):
    assert measure.signed(difference) == text


def simulate(rng, *, effect, num_clusters, size, seeds):
    """The estimate of a study whose clusters of `size` documents share most of what tells two models apart."""
    from evaluation.contrasts import Contrasts
    from evaluation.held_out import _match
    from evaluation.statistics import Model

    difficulty = rng.normal(1.4, 0.3, num_clusters)
    models = [Model(name, True) for name in ("low", "high") for _ in range(seeds)]
    rows = []
    for model in models:
        shift = effect * (model.condition == "high") + (rng.normal(0, 0.01) if seeds > 1 else 0.0)
        own = difficulty + shift + rng.gamma(1.5, 0.03, num_clusters)
        rows.append([{"cluster": str(cluster), "bytes": 1000, "nats": 1000 * np.log(2) * (own[cluster] + rng.normal(
            0, 0.01))} for cluster in range(num_clusters) for _ in range(size)])
    study = Contrasts(models, [_match("neutral", rows)], 400, int(rng.integers(2**31)))
    return study.estimate({"high": 1.0, "low": -1.0}, study.tasks)


@pytest.mark.slow
@pytest.mark.parametrize("num_clusters, size, seeds", [(60, 1, 1), (40, 4, 1), (60, 1, 3)])
def test_intervals_cover_and_false_alarms_are_few(num_clusters, size, seeds):
    """Of 1,000 simulated studies, with three standard errors of that number."""
    rng, effect, num_studies = np.random.default_rng([num_clusters, size, seeds]), -0.02, 1000
    found = [simulate(rng, effect=effect, num_clusters=num_clusters, size=size, seeds=seeds)
             for _ in range(num_studies)]
    covered = np.mean([one["low"] <= effect <= one["high"] for one in found])
    assert 0.93 <= covered <= 0.97
    nothing = [simulate(rng, effect=0.0, num_clusters=num_clusters, size=size, seeds=seeds)
               for _ in range(num_studies)]
    alarms = np.mean([one["p"] <= 0.05 and not one["low"] <= 0 <= one["high"] for one in nothing])
    print(f"coverage {covered:.3f}, false alarms {alarms:.3f}")
    assert alarms <= 0.05 + 3 * (0.05 * 0.95 / num_studies) ** 0.5
