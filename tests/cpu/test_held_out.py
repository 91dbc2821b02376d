"""Held-out text document by document: what a plain loop over transformers gives, under any layout."""

import json
import math

import numpy as np
import pytest
import torch

from megatron_ext.data.indexed import IndexedReader
from megatron_ext.data.windows import held_out_documents, windows_of
from tests.cpu.launch import run_distributed
from tests.cpu.test_grid import CP2, PP2, SP, TP2, VPP2
from tests.cpu.tiny import EOD, make_model, make_tokenized

SEQ_LENGTH, STRIDE = 32, 12
LAYOUTS = {"dp2": {}, "tp2_sp": TP2 | SP, "pp2_vpp2": PP2 | VPP2, "cp2": CP2}


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    folder = tmp_path_factory.mktemp("held_out")
    make_model(folder / "model", num_hidden_layers=4)
    common = {"sources": {name: str(make_tokenized(folder / name, seed)) for seed, name in enumerate("ab")},
              "seq_length": SEQ_LENGTH, "stride": STRIDE, "dtype": "float32", "model": str(folder / "model")}
    variants = {name: {**common, "micro_batch_size": 2, "parallel": layout, "output": str(folder / name)}
                for name, layout in LAYOUTS.items()}
    run_distributed("tests.cpu.cases_training:held_out", 2, variants=variants)
    return folder


def rows(folder):
    return [json.loads(line) for line in (folder / "documents.jsonl").read_text().splitlines()]


def plain_loop(folder, source):
    """Nats of each held-out document, one window after the other, from the definition."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32).eval()
    reader = IndexedReader(folder / source / "valid")
    for number in range(len(reader)):
        text = [EOD, *map(int, reader.read(number)[:-1])]
        nats, done, start = 0.0, 0, 0
        while done < len(text) - 1:
            end = min(start + SEQ_LENGTH, len(text) - 1)
            with torch.no_grad():
                logits = model(torch.tensor([text[start:end]])).logits[0].double().log_softmax(-1)
            nats -= sum(logits[place - start, text[place + 1]].item() for place in range(done, end))
            done, start = end, start + STRIDE
        yield nats, len(text) - 1


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_nats_of_every_document_are_those_of_a_plain_loop(lab, layout):
    measured = rows(lab / layout)
    expected = [one for source in "ab" for one in plain_loop(lab, source)]
    assert max(tokens for _, tokens in expected) > SEQ_LENGTH + STRIDE  # some are read in several windows
    assert [row["tokens"] for row in measured] == [tokens for _, tokens in expected]
    np.testing.assert_allclose([row["nats"] for row in measured], [nats for nats, _ in expected], rtol=1e-5)


@pytest.mark.slow
def test_the_sums_of_a_source_are_those_of_its_documents(lab):
    measured, losses = rows(lab / "dp2"), json.loads((lab / "dp2" / "losses.json").read_text())
    for source in "ab":
        own = [row for row in measured if row["source"] == source]
        nats = sum(row["nats"] for row in own)
        assert losses[source]["num_tokens"] == sum(row["tokens"] for row in own)
        assert losses[source]["bits_per_byte"] == pytest.approx(nats / math.log(2) / sum(row["bytes"] for row in own))


@pytest.mark.parametrize("seq_length, stride", [(32, 12), (32, 32), (7, 1), (500, 500)])
def test_every_token_is_predicted_once_and_late_ones_see_enough(tmp_path, seq_length, stride):
    documents = held_out_documents(make_tokenized(tmp_path / "a", 0), max_tokens=10**6)
    seen = {number: [] for number in range(len(documents))}
    for window in windows_of(documents, seq_length, stride):
        assert window.num_predictions <= seq_length
        assert window.start == 0 or window.first >= seq_length - stride
        seen[window.document] += range(window.start + window.first, window.start + window.num_predictions)
    assert seen == {number: list(range(document.num_tokens)) for number, document in enumerate(documents)}


def test_whole_documents_until_the_limit(tmp_path):
    folder = make_tokenized(tmp_path / "a", 0)
    whole = held_out_documents(folder, max_tokens=10**6)
    some = held_out_documents(folder, max_tokens=whole[0].num_tokens + 1)
    assert [one.id for one in some] == [one.id for one in whole[:2]]
    assert some[1].num_tokens == whole[1].num_tokens
