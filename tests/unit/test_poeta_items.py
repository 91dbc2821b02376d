import json

import pytest

from evaluation.poeta.items import ItemsSettings, write_items
from evaluation.poeta.sources import SAMPLE
from megatron_ext.data.selection.contamination import read_items
from megatron_ext.errors import UserError


def test_the_items_of_the_tasks_at_hand_are_written(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    settings = ItemsSettings(tasks=("tweetsentbr_greedy", "faquad"), data=SAMPLE, allow_download=False)
    artifact = write_items(settings, tmp_path / "items")
    items = read_items(artifact.path)
    assert artifact.counts == {"items": {"tweetsentbr_greedy": len(items)}, "tasks_without_data": ["faquad"]}
    raw = json.dumps(json.loads((SAMPLE / "data/tweetsentbr/tweetsentbr.json").read_bytes()), ensure_ascii=False)
    assert all(item.text for item in items)
    assert len({item.id for item in items}) == len(items)
    assert any(item.text.strip('".') in raw for item in items)
    assert len({item.text.split()[0] for item in items}) > 1  # no template before the text


def test_items_of_raw_data_without_ids_are_numbered(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    raw = tmp_path / "Portuguese-Hate-Speech-Dataset" / "data.csv"
    raw.parent.mkdir()
    rows = [f'"texto {number}","{number % 2}","1","A","1","V","0","E"\n' for number in range(40)]
    raw.write_text('"text","hatespeech_comb","hatespeech_G1","annotator_G1","hatespeech_G2","annotator_G2",'
                   '"hatespeech_G3","annotator_G3"\n' + "".join(rows))
    settings = ItemsSettings(tasks=("pt_hate_speech_greedy",), data=tmp_path, allow_download=False)
    items = read_items(write_items(settings, tmp_path / "items").path)
    assert len(items) > 10 and [item.id for item in items] == [str(number) for number in range(len(items))]


def test_without_any_raw_data(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(UserError, match="raw data of none of the tasks is at hand: faquad"):
        write_items(ItemsSettings(tasks=("faquad",), data=tmp_path, allow_download=False), tmp_path / "items")
