"""Damage to each kind of file of a study is noticed, the file named; its stages are simulated, its artifacts real."""

import pytest

from tests.damage import HARMS
from tests.study.campaigns import damage_each_kind
from tests.unit.simulated_study import write_study


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_damage_to_each_kind_of_file_is_noticed(tmp_path, monkeypatch, seed):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_study(tmp_path / "study", num_items=60)
    damage = damage_each_kind(tmp_path / "study", seed)
    assert damage.missed == []
    assert damage.num_kinds > 20
    assert set(damage.noticed) == {harm.__name__ for harm in HARMS}
