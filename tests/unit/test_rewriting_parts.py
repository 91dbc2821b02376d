import pytest

from megatron_ext.artifacts import Artifact
from megatron_ext.data.documents import read_documents
from megatron_ext.data.rewriting.rewrite import rewrite_corpus
from megatron_ext.errors import UserError
from megatron_ext.parts import Merge, Part
from tests.unit.test_rewriting import TEXTS, good_answer, make_selection, model, scripted, settings_for  # noqa: F401


def answer(request):
    """Good for most passages; some fail at first, some always, so that there is something to count."""
    if "vento" in request.prompt and request.seed % 2:
        return "Não posso."
    return good_answer(request) if "chuva" not in request.prompt else ""


@pytest.fixture
def settings(tmp_path, model):  # noqa: F811
    texts = {f"{name}{number}": text for number in range(5) for name, text in TEXTS.items()}
    return settings_for(make_selection(tmp_path / "selection", texts), model, chunk_tokens=40, styles=["easy", "qa"],
                        window_tokens=60)  # about a document a window


def files_of(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*"))
            if path.is_file() and path.name != "manifest.json"}


@pytest.mark.parametrize("count", [1, 4, 20])  # of at most 15 windows: some parts are empty then
def test_merged_parts_are_what_one_machine_makes(settings, scripted, tmp_path, count):  # noqa: F811
    scripted(answer)
    whole = rewrite_corpus(settings, tmp_path / "whole")
    assert whole.counts["chunks"]["easy"]["reasons"]
    for index in range(count):
        rewrite_corpus(settings, tmp_path / "merged", Part(index, count))
    merged = rewrite_corpus(settings, tmp_path / "merged", Merge(count))
    assert files_of(merged.path) == files_of(whole.path)
    assert merged.counts == whole.counts
    assert merged.manifest["request"] == whole.manifest["request"]


def test_parts_share_the_documents(settings, scripted, tmp_path):  # noqa: F811
    scripted(good_answer)
    parts = [rewrite_corpus(settings, tmp_path / "merged", Part(index, 4)) for index in range(4)]
    found = [{one.document_id for one in read_documents(part.path)} for part in parts]
    assert sum(map(len, found)) == len(set().union(*found)) == 15
    assert [part.path.name for part in parts] == ["0-of-4", "1-of-4", "2-of-4", "3-of-4"]


def test_a_merge_refuses_what_is_missing_or_was_made_otherwise(settings, scripted, tmp_path):  # noqa: F811
    scripted(good_answer)
    rewrite_corpus(settings, tmp_path / "merged", Part(0, 2))
    with pytest.raises(UserError, match=r"1 of 2 parts are missing: .*1-of-2"):
        rewrite_corpus(settings, tmp_path / "merged", Merge(2))
    rewrite_corpus(settings.model_copy(update={"seed": 5}), tmp_path / "merged", Part(1, 2))
    with pytest.raises(UserError, match=r"1-of-2 was made from another request \(settings.seed: made with 5"):
        rewrite_corpus(settings, tmp_path / "merged", Merge(2))
    assert Artifact.open(tmp_path / "merged.parts" / "0-of-2").settings["part"] == [0, 2]
