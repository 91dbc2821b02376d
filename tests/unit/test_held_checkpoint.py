"""Exports of a run that goes on and deletes its checkpoints."""

import errno
import os
import shutil

import pytest
from safetensors.torch import load_file

from megatron_ext.artifacts import delete_artifact, produce, reference, write_text
from megatron_ext.errors import UserError
from megatron_ext.model import hf_export
from megatron_ext.model.held_checkpoint import CheckpointGone, held
from megatron_ext.model.hf_export import ExportSettings, export_hf, export_run
from megatron_ext.model.hf_import import write_megatron_checkpoint
from tests.hf_models import make_hf_model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_hf_model(tmp_path_factory.mktemp("model"))


class Run:
    """A run's folder, in which a test saves and deletes checkpoints."""

    def __init__(self, folder, model):
        self.folder, self.model = folder, model

    def checkpoint(self, iteration):
        return self.folder / "checkpoints" / f"iter_{iteration:07d}"

    def save(self, iteration):
        checkpoint = self.checkpoint(iteration)
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        def make(folder):
            write_text(folder / "run_state.json", str(iteration))
            return write_megatron_checkpoint(self.model, folder)

        produce(checkpoint, kind="checkpoint", settings={}, inputs={}, make=make)
        write_text(checkpoint.parent / "latest", checkpoint.name + "\n")

    def finish(self):
        produce(self.folder.with_name("finished"), kind="run", settings={}, inputs={}, make=lambda folder: {})
        shutil.copy(self.folder.with_name("finished") / "manifest.json", self.folder)


@pytest.fixture
def run(tmp_path, model):
    run = Run(tmp_path / "run", model)
    run.save(1)
    return run


def settings(checkpoint, **changes):
    return ExportSettings(checkpoint=checkpoint, parity=False, poll_seconds=0.01, **changes)


def delete_before_writing(monkeypatch, then=lambda: None):
    """Let the run delete the checkpoint just when the export begins to write its weights."""
    write = hf_export.write_hf_folder

    def write_after_deletion(source, folder, *arguments):
        monkeypatch.setattr(hf_export, "write_hf_folder", write)
        then()
        return write(source, folder, *arguments)

    monkeypatch.setattr(hf_export, "write_hf_folder", write_after_deletion)


def test_an_export_survives_the_deletion_of_its_checkpoint(run, tmp_path, monkeypatch):
    delete_before_writing(monkeypatch, lambda: delete_artifact(run.checkpoint(1)))
    exported = export_hf(settings(run.checkpoint(1)), tmp_path / "exported")
    assert not run.checkpoint(1).exists()
    written, original = (load_file(folder / "model.safetensors") for folder in (exported.path, run.model))
    assert written.keys() == original.keys()
    assert all(written[name].equal(tensor) for name, tensor in original.items())
    assert sorted(file.name for file in exported.path.iterdir()) == sorted(
        ["manifest.json", *(file.name for file in run.model.iterdir())])


def refuse_links(monkeypatch):
    def refuse(source, target):
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), source)

    monkeypatch.setattr(os, "link", refuse)


def test_without_links_an_export_works_and_a_deletion_is_told(run, tmp_path, monkeypatch):
    refuse_links(monkeypatch)
    export_hf(settings(run.checkpoint(1)), tmp_path / "exported")
    delete_before_writing(monkeypatch, lambda: delete_artifact(run.checkpoint(1)))
    with pytest.raises(CheckpointGone, match="If the run has deleted it: export earlier"):
        export_hf(settings(run.checkpoint(1)), tmp_path / "too_late")
    assert not (tmp_path / "too_late").exists()


def test_latest_moves_on_when_its_checkpoint_goes(run, tmp_path, monkeypatch):
    refuse_links(monkeypatch)

    def next_checkpoint():
        run.save(2)
        delete_artifact(run.checkpoint(1))

    delete_before_writing(monkeypatch, next_checkpoint)
    exported = export_hf(settings(run.folder / "checkpoints" / "latest"), tmp_path / "exported")
    assert exported.manifest["request"]["inputs"]["checkpoint"] == reference(run.checkpoint(2))


def test_links_left_by_a_killed_export_are_made_anew(run, tmp_path):
    left = tmp_path / ".checkpoint"
    left.mkdir()
    (left / ".metadata").write_bytes(b"of another checkpoint")
    with held(run.checkpoint(1), tmp_path) as copy:
        assert (copy / ".metadata").samefile(run.checkpoint(1) / ".metadata")
        assert (copy / "hf" / "config.json").exists()
    assert not left.exists()


def test_a_run_is_followed_to_its_end(run, tmp_path):
    exports = export_run(settings(run.folder, follow=True), tmp_path / "exports")
    assert next(exports).path == tmp_path / "exports" / "iter_0000001"
    delete_artifact(run.checkpoint(1))
    run.save(2)
    assert next(exports).path == tmp_path / "exports" / "iter_0000002"
    run.save(3)
    run.finish()
    assert [export.path.name for export in exports] == ["iter_0000003"]
    again = export_run(settings(run.folder, follow=True), tmp_path / "exports")
    assert [export.path.name for export in again] == ["iter_0000002", "iter_0000003"]


def test_what_is_no_checkpoint_is_told(tmp_path):
    with pytest.raises(UserError, match="is not a finished artifact"):
        export_hf(settings(tmp_path), tmp_path / "exported")
