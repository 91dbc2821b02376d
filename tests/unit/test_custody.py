"""Changed bytes are noticed before they are used, whatever was done to hide them; caches are only a convenience."""

import json
import os
import shutil
import time
from pathlib import Path

import pytest

from megatron_ext import contents
from megatron_ext.artifacts import Artifact, produce, reference
from megatron_ext.errors import UserError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def make(folder, files, **inputs):
    def write(place):
        for name, text in files.items():
            (place / name).parent.mkdir(exist_ok=True, parents=True)
            (place / name).write_text(text)
        return {"files": len(files)}

    return produce(folder, kind="thing", settings={}, inputs=inputs, make=write)


def change_in_place(path, position=0):
    """Flip a bit; size and time of modification stay."""
    stat = path.stat()
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def let_the_clock_tick():
    time.sleep(0.05)


@pytest.fixture
def no_reading(monkeypatch):
    def read(path):
        raise AssertionError(f"{path} is read though nothing changed")

    return lambda: monkeypatch.setattr(contents, "hash_file", read)


def test_a_change_that_keeps_size_and_time_is_refused_by_name(tmp_path):
    make(tmp_path / "a", {"x": "one", "y": "two"})
    let_the_clock_tick()
    change_in_place(tmp_path / "a" / "y")
    with pytest.raises(UserError, match=rf"{tmp_path}/a/y has other bytes than when it was made") as error:
        Artifact.open(tmp_path / "a")
    assert "/a/x" not in str(error.value)


def test_a_new_stamp_on_equal_bytes_is_no_change_and_read_once(tmp_path, no_reading):
    make(tmp_path / "a", {"x": "one"})
    let_the_clock_tick()
    os.utime(tmp_path / "a" / "x", (1, 1))
    let_the_clock_tick()
    Artifact.open(tmp_path / "a")
    no_reading()
    Artifact.open(tmp_path / "a").check()


def test_a_copied_tree_is_read_once_before_it_is_used(tmp_path, no_reading):
    make(tmp_path / "a", {"x": "one"})
    shutil.copytree(tmp_path / "a", tmp_path / "copy")
    let_the_clock_tick()
    Artifact.open(tmp_path / "copy").check()
    no_reading()
    Artifact.open(tmp_path / "copy").check()


def test_a_change_on_the_way_of_a_copy_is_noticed_by_the_stage_that_would_read_it(tmp_path):
    make(tmp_path / "a", {"x": "one"})
    shutil.copytree(tmp_path / "a", tmp_path / "copy")
    change_in_place(tmp_path / "copy" / "x")
    with pytest.raises(UserError, match=f"{tmp_path}/copy/x has other bytes"):
        make(tmp_path / "b", {}, source=tmp_path / "copy")


def test_a_moved_folder_keeps_what_is_known_of_it(tmp_path):
    make(tmp_path / "a", {"x": "one"})
    let_the_clock_tick()
    (tmp_path / "a").rename(tmp_path / "moved")
    change_in_place(tmp_path / "moved" / "x")
    with pytest.raises(UserError, match="moved/x has other bytes"):
        Artifact.open(tmp_path / "moved")


def test_verify_reads_bytes_that_stamps_vouch_for(tmp_path, monkeypatch):
    artifact = make(tmp_path / "a", {"x": "one"})
    monkeypatch.setattr(contents, "stamp_of", lambda stat: (0, 0, stat.st_size, 0, 0))  # as if by bit rot
    change_in_place(tmp_path / "a" / "x")
    assert len(artifact.verify()) == 1


def test_verify_reads_the_artifacts_inside(tmp_path):
    def write(place):
        make(place / "inner", {"x": "one"})
        return {}

    outer = produce(tmp_path / "a", kind="outer", settings={}, inputs={}, make=write)
    change_in_place(tmp_path / "a" / "inner" / "x")
    [problem] = outer.verify()
    assert "inner/x" in problem


@pytest.mark.parametrize("at", ["counts", "request", "made_by", "manifest_hash", "content_hash"])
def test_a_change_of_any_part_of_a_manifest_is_noticed(tmp_path, at):
    path = make(tmp_path / "a", {"x": "one"}).path / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest[at] = {**manifest[at], "more": 1} if isinstance(manifest[at], dict) else "0" * 64
    path.write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=str(path)):
        Artifact.open(tmp_path / "a")


def test_a_manifest_that_was_cut_is_named_and_not_taken_for_a_plain_file(tmp_path):
    path = make(tmp_path / "a", {"x": "one"}).path / "manifest.json"
    path.write_text(path.read_text()[:-20])
    with pytest.raises(UserError, match=f"{path} was damaged"):
        reference(tmp_path / "a")


@pytest.mark.parametrize("text", ['{"name": "an extension", "files": []}', "[1, 2]", "no json at all"])
@pytest.mark.parametrize("place", ["", "deep"])
def test_a_foreign_manifest_is_a_plain_file(tmp_path, text, place):
    folder = tmp_path / "corpus"
    (folder / "deep").mkdir(parents=True)
    (folder / place / "manifest.json").write_text(text)
    (folder / "deep" / "shard.jsonl").write_text("{}\n")
    seen = [reference(folder)]
    assert seen[0]["kind"] == "folder"
    for changed in (Path("deep/shard.jsonl"), Path(place, "manifest.json")):
        (folder / changed).write_text("other")
        seen.append(reference(folder))
    assert len({entry["content_hash"] for entry in seen}) == 3


def test_a_plain_folder_is_hashed_through_links_and_a_link_upwards_ends(tmp_path):
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "one").write_text("1")
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "linked").symlink_to(tmp_path / "shards")
    (tmp_path / "shards" / "up").symlink_to(tmp_path / "corpus")
    (tmp_path / "corpus" / "nowhere").symlink_to(tmp_path / "absent")
    os.mkfifo(tmp_path / "corpus" / "pipe")
    before = reference(tmp_path / "corpus")
    (tmp_path / "shards" / "one").write_text("2")
    assert reference(tmp_path / "corpus") != before


def make_unwritable(cache):
    cache.parent.mkdir(exist_ok=True)
    cache.write_text("a file where a folder is wanted")


def damage(cache):
    for file in cache.rglob("*.json"):
        file.write_bytes(file.read_bytes()[:-9] + b'"broken!"')


def forge(cache):
    for file in cache.rglob("*.json"):
        file.write_text(file.read_text().replace('"files": {', '"files": {"z": 3, '))


@pytest.mark.parametrize("harm", [make_unwritable, damage, forge, lambda cache: shutil.rmtree(cache)])
def test_without_a_sound_cache_everything_works(tmp_path, harm, monkeypatch):
    if harm is not make_unwritable:
        make(tmp_path / "before", {"x": "one"})
    harm(tmp_path / "cache")
    make(tmp_path / "a", {"x": "one"}, source=tmp_path)
    Artifact.open(tmp_path / "a").check()
    change_in_place(tmp_path / "a" / "x")
    with pytest.raises(UserError, match="a/x has other bytes"):
        Artifact.open(tmp_path / "a").check()


def test_without_a_home_everything_works(tmp_path, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr("pathlib.Path.home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    make(tmp_path / "a", {"x": "one"})
    assert Artifact.open(tmp_path / "a").check().counts == {"files": 1}


@pytest.mark.slow
def test_of_a_large_study_in_which_nothing_changed_no_file_is_read(tmp_path, no_reading):
    """20,000 files at two seconds of a processor: benchmarks/robustness.md."""
    for number in range(100):
        make(tmp_path / str(number), {f"{name:03}": "text" for name in range(200)})
    let_the_clock_tick()
    for number in range(100):
        Artifact.open(tmp_path / str(number)).check()
    no_reading()
    for number in range(100):
        Artifact.open(tmp_path / str(number)).check()
