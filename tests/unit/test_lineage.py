import shutil

import pytest

from megatron_ext.artifacts import MANIFEST, Artifact, produce
from megatron_ext.errors import UserError
from megatron_ext.lineage import Places, trace, tree, verify
from tools.verify_artifact import main


def make(folder, kind, inputs, text):
    def write(place):
        (place / "data.bin").write_text(text)
        return {}

    return produce(folder, kind=kind, settings={}, inputs=inputs, make=write).path


@pytest.fixture
def study(tmp_path):
    """corpus -> selection -> tokenized -> (run, comparison), the comparison from run and tokenized."""
    work = tmp_path / "work"
    corpus = tmp_path / "corpus"
    (corpus / "deep").mkdir(parents=True)
    (corpus / "deep" / "a.jsonl").write_text("{}\n")
    (corpus / "b.jsonl").write_text("{}\n{}\n")
    selection = make(work / "select", "selection", {"corpus": corpus}, "selected")
    tokenized = make(work / "tokenize", "tokenized", {"documents": selection}, "tokens")
    run = make(work / "run", "run", {"source high": tokenized}, "weights")
    make(work / "compare", "comparison", {"a": run, "source": tokenized}, "verdict")
    (work / "study.json").write_text("{}")
    return tmp_path


def check(study, raw=()):
    work = study / "work"
    return verify(Artifact.of_manifest(work / "compare"), Places([work], list(raw)))


def test_an_unbroken_chain_reaches_the_raw_files(study):
    result = check(study, [study / "corpus"])
    assert result.problems == result.unchecked == []
    assert [step.artifact.kind for step in result.steps] == ["comparison", "run", "tokenized", "selection"]
    assert result.num_files == 4
    assert result.num_bytes == len("selected" "tokens" "weights" "verdict")


def test_one_changed_byte_names_file_and_way_to_it(study):
    file = study / "work" / "tokenize" / "data.bin"
    file.write_text("tokenz")
    [problem] = check(study).problems
    assert str(file) in problem
    assert "comparison > source" in problem


def test_a_missing_file_and_one_of_another_size_are_told(study):
    (study / "work" / "select" / "data.bin").unlink()
    (study / "work" / "run" / "data.bin").write_text("more weights than before")
    problems = check(study).problems
    assert len(problems) == 2
    assert any("select/data.bin: missing" in problem for problem in problems)


def test_a_manifest_that_was_changed_to_fit_changed_bytes_breaks_the_link_to_it(study):
    shutil.rmtree(study / "work" / "tokenize")
    make(study / "work" / "tokenize", "tokenized", {"documents": study / "work" / "select"}, "other tokens")
    problems = check(study).problems
    assert len(problems) == 2
    assert all("in none of the searched folders, or was made again with other bytes" in one for one in problems)
    assert any("its input 'source high' (tokenized" in one for one in problems)


def test_a_manifest_whose_hash_does_not_follow_from_its_files_is_told(study):
    path = study / "work" / "run" / MANIFEST
    entry = Artifact.of_manifest(path.parent).manifest["files"]["data.bin"]["sha256"]
    (path.parent / "data.bin").write_text("w3ights")
    import hashlib

    path.write_text(path.read_text().replace(entry, hashlib.sha256(b"w3ights").hexdigest()))
    [problem] = check(study).problems
    assert "content_hash does not follow" in problem


def test_raw_inputs_are_unchecked_until_they_are_named_and_broken_when_they_changed(study):
    assert len(check(study).unchecked) == 1
    (study / "corpus" / "b.jsonl").write_text("{ }\n{}\n")
    result = check(study, [study / "corpus"])
    assert result.problems == [f"{study / 'corpus'}: its bytes are not those of any raw input of the chain"]


def test_the_tree_unfolds_each_artifact_once(study):
    work = study / "work"
    lines = tree(trace(Artifact.of_manifest(work / "compare"), Places([work])))
    assert sum("(above)" in line for line in lines) == 1
    assert [line.count("  ") - line.lstrip().count("  ") for line in lines] == [0, 1, 2, 3, 4, 1]
    assert lines[-2].endswith("not found")


def test_unfinished_folders_and_other_programs_manifests_are_passed_over(study):
    work = study / "work"
    shutil.copytree(work / "run", work / "other.partial")
    (work / "foreign").mkdir()
    (work / "foreign" / MANIFEST).write_text('{"name": "not ours"}')
    (work / "torn").mkdir()
    (work / "torn" / MANIFEST).write_text("{")
    assert sum(map(len, Places([work]).artifacts.values())) == 4
    with pytest.raises(UserError, match="foreign is not a finished artifact"):
        Artifact.of_manifest(work / "foreign")


def test_the_program_tells_by_its_exit_code(study, capsys):
    compare = str(study / "work" / "compare")
    assert main([compare, "--raw", str(study / "corpus")]) == 0
    assert "every hash fits" in capsys.readouterr().out
    (study / "work" / "select" / "data.bin").write_text("Selected")
    assert main([compare]) == 1
    output = capsys.readouterr().out
    assert "BROKEN" in output
    assert "not checked: raw input corpus" in output
    assert main([str(study / "nowhere")]) == 2
    assert main([compare, "--root", str(study / "nowhere")]) == 2
    assert main([compare, "--raw", str(study / "nowhere")]) == 2
