import copy

import pytest

from megatron_ext.artifacts import Artifact
from megatron_ext.data.documents import read_documents
from megatron_ext.data.rewriting.originals import OriginalsSettings, join_chunks, take_originals
from megatron_ext.data.rewriting.rewrite import rewrite_corpus
from megatron_ext.data.tokenization import TokenizeSettings, tokenize_corpus
from megatron_ext.errors import UserError
from megatron_ext.study.graph import build_graph
from tests.unit.test_rewriting import (  # noqa: F401
    TEXTS,
    chunk_rows,
    good_answer,
    make_selection,
    model,
    scripted,
    settings_for,
)
from tests.unit.test_study import load, study_values  # noqa: F401


@pytest.fixture
def rewrites(model, scripted, tmp_path):  # noqa: F811
    scripted(lambda request: "" if "chuva" in request.prompt and "perguntas" not in request.prompt else
             f"Pergunta: O que houve?\nResposta: {good_answer(request)[20:]}" if "perguntas" in request.prompt
             else good_answer(request))
    selection = make_selection(tmp_path / "selection", TEXTS)
    return rewrite_corpus(settings_for(selection, model, styles=["easy", "qa"], chunk_tokens=45, retries=0),
                          tmp_path / "rewrites")


def test_originals_are_those_of_exactly_the_accepted_chunks(rewrites, model, tmp_path):  # noqa: F811
    originals = take_originals(OriginalsSettings(rewrites=rewrites.path, tokenizer=model), tmp_path / "originals")
    documents = {one.id: one for one in read_documents(originals.path)}
    assert list(documents) == [one.id for one in read_documents(rewrites.path)]
    accepted = [row for row in chunk_rows(rewrites.path) if row["status"] == "accepted"]
    assert sum(len(one.text.split()) for one in documents.values()) == sum(
        len(row["source"].split()) for row in accepted)
    first, _, last = TEXTS["a"].split("\n\n")
    assert documents["a/easy"].text == f"{first}\n\n{last}"        # the chunk between them failed
    assert documents["c/easy"].text == TEXTS["c"]
    assert all(one.num_tokens == len(one.text.encode()) for one in documents.values())
    assert originals.counts["tokens"] == sum(one.num_tokens for one in documents.values())


def test_originals_are_tokenized_and_held_out_as_their_rewrites(rewrites, model, tmp_path):  # noqa: F811
    originals = take_originals(OriginalsSettings(rewrites=rewrites.path, tokenizer=model), tmp_path / "originals")
    counts = {}
    for artifact in (rewrites, originals):
        settings = TokenizeSettings(documents=artifact.path, tokenizer=model, valid_fraction=0.5, workers=1,
                                    styles=["easy"])
        counts[artifact.kind] = tokenize_corpus(settings, tmp_path / f"{artifact.kind}-bin").counts
    for split in ("train", "valid"):
        assert counts["rewrites"][split]["documents"] == counts["rewritten_originals"][split]["documents"]


def test_only_rewrites_have_originals(model, tmp_path):  # noqa: F811
    selection = make_selection(tmp_path / "selection", TEXTS)
    with pytest.raises(UserError, match="kind 'selection'; 'rewrites' is needed"):
        take_originals(OriginalsSettings(rewrites=selection, tokenizer=model), tmp_path / "out")


@pytest.mark.parametrize("chunks, text", [
    ([(0, "Um. "), (1, "Dois.\n\n"), (2, "Três.")], "Um. Dois.\n\nTrês."),
    ([(0, "Um. "), (2, "Três.\n")], "Um.\n\nTrês."), ([(3, " Só um. ")], "Só um."), ([], "")])
def test_neighbouring_chunks_are_joined_as_they_were(chunks, text):
    assert join_chunks(chunks) == text


def test_a_study_makes_the_originals_that_it_names(load, study_values):  # noqa: F811
    def nodes(**sources):
        values = copy.deepcopy(study_values)
        values["conditions"]["high"]["sources"] = sources
        return {node.name: node for node in build_graph(load(values))}

    without, with_them = nodes(high={"fill": True}), nodes(high_rewritten_originals={"fill": True})
    assert not any(name.startswith("originals/") for name in without)
    originals = with_them["originals/high_rewritten_originals"]
    assert originals.inputs["rewrites"] is with_them["rewrite/high"]
    assert with_them["tokenize/high_rewritten_originals"].inputs["documents"] is originals
    with pytest.raises(UserError, match="'low_rewritten_originals' is no source"):
        nodes(low_rewritten_originals={"fill": True})


def test_the_artifact_tells_where_it_is_from(rewrites, model, tmp_path):  # noqa: F811
    take_originals(OriginalsSettings(rewrites=rewrites.path, tokenizer=model), tmp_path / "originals")
    made = Artifact.open(tmp_path / "originals", kind="rewritten_originals")
    assert made.manifest["request"]["inputs"]["rewrites"]["content_hash"] == rewrites.content_hash
