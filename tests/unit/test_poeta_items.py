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
    assert any(item.text.strip('".') in raw for item in items)
    assert len({item.text.split()[0] for item in items}) > 1  # no template before the text


def test_without_any_raw_data(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(UserError, match="raw data of none of the tasks is at hand: faquad"):
        write_items(ItemsSettings(tasks=("faquad",), data=tmp_path, allow_download=False), tmp_path / "items")
