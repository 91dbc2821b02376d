"""The campaigns against a small study: a part of `make test-all` alone (CAMPAIGN_KILLS=100)."""

import os
import random

import pytest
import yaml

from megatron_ext.artifacts import Artifact
from tests.damage import HARMS, flip_a_bit
from tests.study import campaigns
from tests.unit.tiny_chat_model import make_tiny_chat_model

pytestmark = [pytest.mark.slow, pytest.mark.campaign]
NUM_KILLS = int(os.environ.get("CAMPAIGN_KILLS", "3"))
SEED = int(os.environ.get("CAMPAIGN_SEED", "0"))


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("campaign")
    (folder / "study.yaml").write_text(yaml.safe_dump(campaigns.small_study(make_tiny_chat_model(folder / "tiny"))))
    return folder / "study.yaml"


@pytest.fixture(scope="module")
def undisturbed(study):
    """(work folder, seconds)"""
    work = study.with_name("undisturbed")
    return work, campaigns.finish(study, work, [])


def test_damage_to_each_kind_of_file_is_noticed(undisturbed, study, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(study.with_name("cache")))  # of the study's processes
    damage = campaigns.damage_each_kind(undisturbed[0], SEED)
    assert damage.missed == []
    assert damage.num_kinds > 40
    assert set(damage.noticed) == {harm.__name__ for harm in HARMS}


def test_a_runner_says_which_file_was_changed_before_anything_uses_it(undisturbed, study):
    work, _ = undisturbed
    path = random.Random(SEED).choice(sorted(work.glob("tokenize/*/train.bin")))
    kept = path.read_bytes()
    flip_a_bit(path, random.Random(SEED))
    log = study.with_name("changed.log")
    with open(log, "w") as file:
        code = campaigns.start(study, work, [], file).wait(600)
    path.write_bytes(kept)
    assert code == 2
    assert f"{path} has other bytes" in log.read_text()
    Artifact.open(path.parent)


def test_killed_at_random_a_study_ends_with_the_bits_of_an_undisturbed_one(undisturbed, study):
    work, seconds = undisturbed
    kills = campaigns.kill_at_random(study, study.parent, campaigns.contents_of(work), NUM_KILLS, seconds, SEED)
    assert sum(kills.by_stage.values()) == NUM_KILLS
    assert kills.differing == []
