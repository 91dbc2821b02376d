import errno
import json
import multiprocessing
import os
import shutil
import signal
import time

import pytest

from megatron_ext.artifacts import MANIFEST, Artifact, partial_folder, produce, reference
from megatron_ext.errors import UserError, exit_on_user_error
from megatron_ext.hashing import hash_file


def write_hello(folder):
    (folder / "data").mkdir(exist_ok=True)
    (folder / "data" / "hello.txt").write_text("olá")
    return {"documents": 1}


def never(folder):
    raise AssertionError("must not be made again")


def make_hello(output, **changes):
    request = {"kind": "greeting", "settings": {"language": "pt"}, "inputs": {}, "make": write_hello} | changes
    return produce(output, **request)


def test_an_artifact_is_whole_and_made_once(tmp_path):
    artifact = make_hello(tmp_path / "a")
    assert (tmp_path / "a" / "data" / "hello.txt").read_text() == "olá"
    assert not partial_folder(tmp_path / "a").exists()
    assert sorted(artifact.manifest["files"]) == ["data/hello.txt"]
    assert artifact.counts == {"documents": 1}
    assert make_hello(tmp_path / "a", make=never).content_hash == artifact.content_hash


def test_equal_bytes_give_equal_hashes(tmp_path):
    assert make_hello(tmp_path / "a").content_hash == make_hello(tmp_path / "b").content_hash


def test_another_request_for_the_same_folder_is_refused_and_says_what_differs(tmp_path):
    make_hello(tmp_path / "a")
    with pytest.raises(UserError, match=r"settings\.language: made with 'pt', asked for 'en'"):
        make_hello(tmp_path / "a", settings={"language": "en"}, make=never)


def test_changed_input_bytes_are_noticed(tmp_path):
    source = tmp_path / "source.txt"
    source.write_text("one")
    make_hello(tmp_path / "a", inputs={"source": source})
    source.write_text("two")
    with pytest.raises(UserError, match=r"inputs\.source\.content_hash"):
        make_hello(tmp_path / "a", inputs={"source": source}, make=never)


def test_a_change_that_keeps_size_and_time_stamp_is_noticed_right_after_the_first_hashing(tmp_path):
    source = tmp_path / "source.txt"
    source.write_text("one")
    stamp = source.stat().st_mtime_ns
    before = reference(source)
    source.write_text("two")
    os.utime(source, ns=(stamp, stamp))
    assert reference(source) != before


def _hash_many(folder):
    for number in range(30):
        file = folder / f"{os.getpid()}-{number}"
        file.write_text("x")
        reference(file)


def test_processes_share_the_cache_of_hashes(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_hash_many, args=(tmp_path,)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0, 0]


def test_an_interrupted_artifact_goes_on_where_it_stopped(tmp_path):
    def fail(folder):
        (folder / "part-0").write_text("done before")
        raise KeyboardInterrupt

    def go_on(folder):
        assert (folder / "part-0").read_text() == "done before"
        return {}

    with pytest.raises(KeyboardInterrupt):
        make_hello(tmp_path / "a", make=fail)
    assert not (tmp_path / "a").exists()
    with pytest.raises(UserError, match="it is unfinished"):
        Artifact.open(tmp_path / "a")
    make_hello(tmp_path / "a", make=go_on)


def leave_unfinished(output, **changes):
    def fail(folder):
        (folder / "part-0").write_text("hours of work")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_hello(output, make=fail, **changes)


def start_afresh(folder):
    assert not (folder / "part-0").exists()
    return {}


def test_work_of_another_request_is_refused_key_by_key_and_kept(tmp_path):
    leave_unfinished(tmp_path / "a", settings={"language": "pt", "size": 1})
    with pytest.raises(UserError, match=r"a\.partial holds unfinished .*language: made with 'pt', asked for 'en'; "
                                        r"settings\.size: made with 1, asked for 2.*restart=true"):
        make_hello(tmp_path / "a", make=never, settings={"language": "en", "size": 2})
    assert (partial_folder(tmp_path / "a") / "part-0").read_text() == "hours of work"
    make_hello(tmp_path / "a", settings={"language": "en", "size": 2}, make=start_afresh, restart=True)


def test_a_finished_artifact_of_another_request_is_thrown_away_when_that_is_asked_for(tmp_path):
    make_hello(tmp_path / "a")
    with pytest.raises(UserError, match="restart=true"):
        make_hello(tmp_path / "a", settings={"language": "en"}, make=never)
    again = make_hello(tmp_path / "a", settings={"language": "en"}, make=start_afresh, restart=True)
    assert again.settings == {"language": "en"}
    assert make_hello(tmp_path / "a", settings={"language": "en"}, make=never, restart=True)


def test_what_tells_of_the_making_is_no_content_but_is_checked(tmp_path):
    def make(folder):
        (folder / "data").write_text("olá")
        (folder / "times.json").write_text(str(time.time_ns()))
        return {}

    first, second = (make_hello(tmp_path / name, make=make, beside=lambda name: name == "times.json") for name in "ab")
    assert (first.path / "times.json").read_text() != (second.path / "times.json").read_text()
    assert first.content_hash == second.content_hash
    (first.path / "times.json").write_text("0")
    with pytest.raises(UserError, match=r"times\.json"):
        Artifact.open(first.path)


def test_an_artifact_inside_counts_by_its_content_and_an_old_one_may_go(tmp_path):
    def make(folder):
        for name in ("old", "last"):
            make_hello(folder / name, inputs={"of": tmp_path / folder.name.split(".")[0][-1]})
            (folder / f"{name}.partial").mkdir()
            (folder / f"{name}.partial" / "cut").write_text("half")
        return {}

    for name in "cd":
        (tmp_path / name).mkdir()
        (tmp_path / name / "input").write_text(name)
    first, second = (make_hello(tmp_path / f"of-{name}", make=make, settings={"place": name},
                                beside=lambda name: name.startswith("old")) for name in "cd")
    assert (first.path / "last" / MANIFEST).read_bytes() != (second.path / "last" / MANIFEST).read_bytes()
    assert first.content_hash == second.content_hash
    assert sorted(first.manifest["files"]) == [f"last/{MANIFEST}", f"old/{MANIFEST}"]
    shutil.rmtree(first.path / "old")
    assert Artifact.open(first.path).verify() == []
    shutil.rmtree(first.path / "last")
    with pytest.raises(UserError, match="is missing"):
        Artifact.open(first.path)


def as_version_1(folder):
    """The manifest as the first version of the format had it."""
    manifest = json.loads((folder / MANIFEST).read_text())
    for key in ("version", "manifest_hash"):
        del manifest[key]
    (folder / MANIFEST).write_text(json.dumps(manifest))


def test_a_request_of_an_older_version_is_read_with_todays_settings(tmp_path):
    def of_older(settings):
        return {"language": settings["language"], "tone": "plain"}

    made = make_hello(tmp_path / "a", settings={"language": "pt", "batch_size": 4})
    as_version_1(tmp_path / "a")
    found = make_hello(tmp_path / "a", settings={"language": "pt", "tone": "plain"}, make=never, of_older=of_older)
    assert found.content_hash == made.content_hash
    assert found.verify() == []
    with pytest.raises(UserError, match="tone: made with 'plain', asked for 'loud'"):
        make_hello(tmp_path / "a", settings={"language": "pt", "tone": "loud"}, make=never, of_older=of_older)


def _make_slowly(output, started):
    def make(folder):
        (folder / "part-0").write_text("x")
        started.set()
        time.sleep(60)
        return {}

    make_hello(output, make=make)


def test_kill_9_leaves_no_artifact_and_no_lock(tmp_path):
    context = multiprocessing.get_context("fork")
    started = context.Event()
    process = context.Process(target=_make_slowly, args=(tmp_path / "a", started))
    process.start()
    started.wait(10)
    with pytest.raises(UserError, match="being made by another process"):
        make_hello(tmp_path / "a")
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert not (tmp_path / "a").exists()
    make_hello(tmp_path / "a")


def test_damage_is_recognised(tmp_path):
    artifact = make_hello(tmp_path / "a")
    file = tmp_path / "a" / "data" / "hello.txt"
    file.write_text("ola!")  # the same number of bytes
    assert artifact.verify() == [f"{file}: bytes differ from the manifest's sha256 "
                                 f"{artifact.manifest['files']['data/hello.txt']['sha256'][:12]}"]
    file.write_text("x")
    with pytest.raises(UserError, match="has 1 bytes instead of 4"):
        Artifact.open(tmp_path / "a")
    file.unlink()
    with pytest.raises(UserError, match="is missing"):
        Artifact.open(tmp_path / "a")


def test_wrong_kind_is_refused(tmp_path):
    make_hello(tmp_path / "a")
    with pytest.raises(UserError, match="kind 'greeting'; 'selection' is needed"):
        Artifact.open(tmp_path / "a", kind="selection")


def test_a_folder_of_other_things_is_not_overwritten(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="is not an artifact"):
        make_hello(tmp_path / "a", make=never)


def test_an_artifact_inside_an_artifact_counts_as_its_manifest(tmp_path):
    def make(folder):
        make_hello(folder / "inner")
        return {}

    artifact = make_hello(tmp_path / "a", make=make)
    assert list(artifact.manifest["files"]) == [f"inner/{MANIFEST}"]
    assert artifact.manifest["files"][f"inner/{MANIFEST}"]["sha256"] == hash_file(tmp_path / "a" / "inner" / MANIFEST)


def test_manifest_records_request_and_makers(tmp_path):
    manifest = json.loads((make_hello(tmp_path / "a").path / MANIFEST).read_text())
    assert manifest["request"]["kind"] == "greeting"
    assert set(manifest["made_by"]) >= {"program", "git", "python", "packages"}


@pytest.mark.parametrize(("error", "code"), [
    (UserError("no such column"), 2),
    (OSError(errno.ENOSPC, "No space left on device", "/full"), 2),
    (RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"), 2),
])
def test_a_users_mistake_is_one_line_and_exit_code_2(capsys, error, code):
    @exit_on_user_error
    def main():
        raise error

    assert main() == code
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1


def test_our_own_faults_keep_their_traceback():
    @exit_on_user_error
    def main():
        raise OSError(errno.EIO, "Input/output error")

    with pytest.raises(OSError, match="Input/output"):
        main()
