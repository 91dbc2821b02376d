"""Language packs: what every folder must have, what is told of a wrong one, and a third one made up here."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from megatron_ext.data.rewriting.checking.checks import load_thresholds
from megatron_ext.data.rewriting.checking.lexicon import Lexicon, load_lexicon
from megatron_ext.data.rewriting.checking.qa import read_qa
from megatron_ext.data.rewriting.checking.quantities import missing, read_quantities
from megatron_ext.data.rewriting.checking.wrapping import strip_wrapping
from megatron_ext.data.rewriting.judge.form import load_form
from megatron_ext.data.rewriting.judge.pairs import labelled_pairs
from megatron_ext.data.rewriting.packs import (
    LABELLED_FILE,
    LANGUAGES_FOLDER,
    LEXICON_FILE,
    PROMPTS_FOLDER,
    THRESHOLDS_FILE,
    language_folder,
    languages,
)
from megatron_ext.data.rewriting.pairs import judge_pairs, read_pairs
from megatron_ext.data.rewriting.prompts import load_prompts
from megatron_ext.data.rewriting.rewrite import rewrite_corpus
from megatron_ext.errors import UserError
from megatron_ext.study.config import load_study
from megatron_ext.study.graph import build_graph
from tests.unit.test_judge_in_studies import QUICKSTART
from tests.unit.test_labelled_rewrites import is_about_meaning, read_lines, share
from tests.unit.test_rewriting import chunk_rows, make_selection, model, scripted, settings_for  # noqa: F401

ENGLISH = Path("examples/quickstart/english/study.yaml")
STYLES = ["easy", "hard", "medium", "qa"]
EMPTY = {"WordSet": "", "WordMap": {}, "Directions": [], "Pattern": "", "PatternText": "", "Phrases": [],
         "dict[str, int]": {}, "dict[str, tuple[str, ...]]": {}}


# What every folder must have.

@pytest.mark.parametrize("language", languages())
def test_a_pack_is_whole(language):
    lexicon = load_lexicon(language)
    assert lexicon.language == language and len(lexicon.months) == 12
    assert set(load_thresholds(STYLES, language=language)) == set(STYLES)
    prompts = {prompt.style: prompt for prompt in load_prompts(STYLES, language=language)}
    assert sorted(file.stem for file in (language_folder(language) / PROMPTS_FOLDER).glob("*.md")) == STYLES
    for prompt in prompts.values():
        assert f"<{lexicon.text_tag}>\nx\n</{lexicon.text_tag}>" in prompt.render("x", "document_first")
    assert len(read_qa(prompts["qa"].instruction, lexicon).pairs) == 1  # the checks read what the prompt asks for
    assert load_form(language) and labelled_pairs(language)
    rows = list(read_pairs(language_folder(language) / LABELLED_FILE))
    assert len(rows) >= 60 and {row["label"] for row in rows} == {"good", "bad"}
    assert {row["style"] for row in rows} == set(STYLES)
    good = next(row["text"] for row in rows if row["label"] == "good" and row["style"] == "medium")
    assert strip_wrapping(f"<{lexicon.text_tag}>\n{good}\n</{lexicon.text_tag}>", "x", lexicon) == good


@pytest.mark.parametrize("language", [language for language in languages() if language != "pt"])
def test_the_checks_are_seldom_wrong_of_its_labelled_pairs(language, tmp_path):
    """Bounds as for Portuguese, whose larger sets have tests of their own."""
    print("\n".join(judge_pairs(language_folder(language) / LABELLED_FILE, tmp_path / "rows.jsonl", language).lines()))
    rows = read_lines(tmp_path / "rows.jsonl")
    good = [row for row in rows if row["label"] == "good"]
    meaning = [row for row in rows if row["label"] == "bad" and is_about_meaning(row["kind"])]
    form = [row for row in rows if row["label"] == "bad" and not is_about_meaning(row["kind"])]
    assert len(good) >= 30 and len(meaning) >= 20 and len(form) >= 20
    assert share(good, accepted=False) <= 0.04, [row["reasons"] for row in good]
    assert share(form, accepted=True) <= 0.07, [row["kind"] for row in form if row["accepted"]]
    assert share(meaning, accepted=True) <= 0.40, [row["kind"] for row in meaning if row["accepted"]]


@pytest.mark.parametrize("language, one, other, same", [
    ("en", "It holds 12,500 pieces.", "It holds twelve thousand five hundred pieces.", True),
    ("en", "It costs $3.5 billion.", "It costs 3,500 million dollars.", True),
    ("en", "It opened on 3/15/1922.", "It opened on 15 March 1922.", True),
    ("en", "It opened on 25/3/1922.", "It opened on March 25th, 1922.", True),
    ("en", "It begins at 2:30 p.m.", "It begins at half past two.", True),
    ("en", "It took two and a half million years.", "It took 2,500,000 years.", True),
    ("en", "Of 40 jars 8 may break.", "Of 40 jars, 8 can break.", True),
    ("en", "Eight of the 40 jars broke in May.", "Eight of the 40 jars broke.", False),
    ("en", "It weighs 1.500 kg.", "It weighs 1,500 kg.", False),
    ("pt", "Pesa 1.500 kg.", "Pesa 1,500 kg.", False),
    ("pt", "Abriu em 3/5/1922.", "Abriu em três de maio de 1922.", True)])
def test_numbers_are_read_as_the_language_writes_them(language, one, other, same):
    lexicon = load_lexicon(language)
    here, there = (read_quantities(text, lexicon) for text in (one, other))
    assert (not missing(here, there) and not missing(there, here)) == same


@pytest.mark.parametrize("language, output, source, text", [
    ("en", "Sure! Here is the rewritten text:\n\nIron is soft.", "Iron yields.", "Iron is soft."),
    ("en", "**Rewritten text:**\nIron is soft.\n\nLet me know if you need anything else!", "Iron.", "Iron is soft."),
    ("en", "Here is the text: read it slowly.", "Here is the text: read it.", "Here is the text: read it slowly."),
    ("en", "Claro! Iron is soft.", "Iron.", "Claro! Iron is soft."),
    ("pt", "Claro! O ferro é mole.", "Ferro.", "O ferro é mole.")])
def test_each_language_strips_its_own_wrapping(language, output, source, text):
    assert strip_wrapping(output, source, load_lexicon(language)) == text


def documents(folder):
    return [row for file in sorted(folder.glob("*.jsonl")) for row in read_lines(file)]


def test_the_english_quickstart_is_whole_and_takes_nothing_portuguese():
    study = load_study(ENGLISH, [])
    assert study.language == "en" and study.rewriter.settings["language"] == "en"
    assert {study.corpus.path, study.validation.neutral} == {ENGLISH.parent / "corpus", ENGLISH.parent / "neutral"}
    corpus, neutral = documents(study.corpus.path), documents(study.validation.neutral)
    assert len(corpus) >= 200 and len(neutral) >= 60
    for rows in (corpus, neutral, corpus + neutral):
        assert len({row["id"] for row in rows}) == len({row["text"] for row in rows}) == len(rows)
    assert all(0 <= row[score] <= 5 for row in corpus for score in ("stem_score", "edu_score"))
    assert all(60 <= len(row["text"].split()) <= 200 for row in corpus)
    portuguese, english = build_graph(load_study(QUICKSTART, [])), build_graph(study)
    assert [node.name for node in english] == [node.name for node in portuguese]


@pytest.mark.skipif(not shutil.which("make"), reason="there is no make")
@pytest.mark.parametrize("arguments, environment, study", [
    (["LANGUAGE=en"], {}, str(ENGLISH)), ([], {"LANGUAGE": "en"}, str(QUICKSTART)), ([], {}, str(QUICKSTART)),
    (["LANGUAGE=xx"], {}, "LANGUAGE=xx: the quickstart is there in pt and en")])
def test_make_knows_the_languages(arguments, environment, study):
    done = subprocess.run(["make", "-n", "quickstart", *arguments], capture_output=True, text=True,
                          env={**os.environ, **environment})
    assert done.returncode == 0 and study in done.stdout


def test_the_guides_example_runs(tmp_path):
    """Its commands make a pack, and its line of a study file names it."""
    commands, line = re.findall(r"```\w*\n(.*?)```", Path("docs/languages.md").read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "packs").mkdir()
    root = Path().absolute()
    for name in ("megatron_ext", "tools"):
        (tmp_path / name).symlink_to(root / name)
    done = subprocess.run(["bash", "-ec", f'python() {{ "{sys.executable}" "$@"; }}; {commands}'], cwd=tmp_path,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "good, but rejected:" in done.stdout and (tmp_path / "judged.jsonl").exists()
    assert load_lexicon(str(tmp_path / "packs" / "es")).language == "es"
    study = {"base": str(QUICKSTART.absolute())} | yaml.safe_load(line)
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study), encoding="utf-8")
    assert load_study(tmp_path / "study.yaml", []).rewriter.settings["language"] == str(tmp_path / "packs" / "es")


# What is told of a wrong one.

@pytest.fixture
def pack(tmp_path):
    """The Portuguese pack in a folder of one's own."""
    return shutil.copytree(LANGUAGES_FOLDER / "pt", tmp_path / "packs" / "own")


def change(file, **values):
    now = yaml.safe_load(file.read_text(encoding="utf-8")) | values
    file.write_text(yaml.safe_dump({key: value for key, value in now.items() if value is not ...}, allow_unicode=True),
                    encoding="utf-8")


@pytest.mark.parametrize("values, told", [
    ({"negations": ..., "negatoins": ["não"]}, "lacks negations; has unknown keys negatoins"),
    ({"refusal": "(não", "talk": 7}, "talk: "), ({"clock": "(?P<x"}, "clock: "), ({"months": "janeiro"}, "months: "),
    ({"scales": {"mil": "1000"}}, "scales: mil is no whole number"), ({"month_first": "yes"}, "month_first: 'yes'"),
    ({"decimal_mark": ";"}, "decimal_mark: ';'"), ({"punkt": "klingon"}, "punkt: there is no model 'klingon'"),
    ({"language": "xx"}, "language: wordfreq has no words of xx"), ({"ranges": ["de {} a"]}, "ranges: "),
    ({"directions": [["up"]]}, "directions: "), ({"units": {"m": 1}}, "units: "),
    ({"rewordings": [["(x", "y"]]}, "rewordings: ")])
def test_a_wrong_lexicon_is_told_with_file_and_key(pack, values, told):
    change(pack / LEXICON_FILE, **values)
    with pytest.raises(UserError) as error:
        load_lexicon(str(pack))
    assert told in str(error.value) and str(pack / LEXICON_FILE) in str(error.value)


def test_other_wrong_files_are_told_too(pack):
    change(pack / "judge.yaml", verdict=..., verdit="x")
    with pytest.raises(UserError, match=r"judge\.yaml: lacks verdict; has unknown keys verdit"):
        load_form(str(pack))
    change(pack / THRESHOLDS_FILE, default={"min_length_ratio": "short"})
    with pytest.raises(UserError, match=r"thresholds\.yaml.*min_length_ratio"):
        load_thresholds(["easy"], language=str(pack))
    shutil.rmtree(pack / PROMPTS_FOLDER)
    with pytest.raises(UserError, match=r"its pack lacks .*prompts"):
        load_prompts(["easy"], language=str(pack))
    with pytest.raises(UserError, match=r"nowhere is no language pack, it has no lexicon\.yaml"):
        load_lexicon("./nowhere")
    with pytest.raises(UserError, match=f"language = 'xx': there are {', '.join(languages())}; one of your own"):
        load_lexicon("xx")


# A third one.

SPANISH = {
    "language": "es", "punkt": "spanish", "other_languages": ["pt", "en"], "decimal_mark": ",", "month_first": False,
    "hour": "horas", "text_tag": "texto", "scales": {"mil": 1000}, "units": {"horas": ["time", 3600]},
    "function_words": "el la los las de del en y a que un una por con se su es", "negations": "no nunca",
    "clause_ends": r"[,;:.!?](?=\s)", "announcement": "aquí está el texto", "refusal_triggers": "puedo",
    "refusal": "no puedo ayudar", "question_labels": ["pregunta"], "answer_labels": ["respuesta"],
}
SOURCE = "El museo abrió en 1922 y guarda 12.500 piezas."
GOOD = "Desde 1922 el museo está abierto. Tiene doce mil quinientas piezas."


@pytest.fixture(scope="module")
def spanish(tmp_path_factory):
    """A pack with what it cannot do without: every other key is empty."""
    folder = tmp_path_factory.mktemp("packs") / "es"
    (folder / PROMPTS_FOLDER).mkdir(parents=True)
    lexicon = {field.name: EMPTY.get(field.type, []) for field in fields(Lexicon)} | SPANISH
    (folder / LEXICON_FILE).write_text(json.dumps(lexicon), encoding="utf-8")
    (folder / PROMPTS_FOLDER / "plain.md").write_text("version: 1\n\nEscribe el texto de nuevo.\n", encoding="utf-8")
    shutil.copy(LANGUAGES_FOLDER / "pt" / THRESHOLDS_FILE, folder)
    return folder


def test_a_third_language_checks_pairs(spanish, tmp_path):
    texts = {GOOD: [], "Aquí está el texto: " + GOOD: [], GOOD.replace("1922", "1932"): ["numbers_new"],
             GOOD.replace("quinientas", "trescientas"): ["numbers_new"], "No puedo ayudar con eso.": ["refusal"],
             "Since 1922 the museum has been open. It has twelve thousand five hundred pieces.": ["other_language"]}
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps({"source": SOURCE, "text": text, "style": "plain"}) + "\n" for text in texts))
    judge_pairs(file, tmp_path / "judged.jsonl", str(spanish))
    judged = [json.loads(line) for line in (tmp_path / "judged.jsonl").read_text().splitlines()]
    for row, reasons in zip(judged, texts.values(), strict=True):
        assert row["accepted"] == (not reasons) and set(reasons) <= set(row["reasons"]), row
    assert judged[0]["text"] == judged[1]["text"] and judged[0]["language"] == "es"


def test_a_third_language_is_rewritten_in(spanish, model, scripted, tmp_path):  # noqa: F811
    scripted(lambda request: "Aquí está el texto: " + GOOD)
    settings = settings_for(make_selection(tmp_path / "selection", {"a": SOURCE}), model, language=str(spanish),
                            styles=["plain"])
    rewrites = rewrite_corpus(settings, tmp_path / "out")
    (row,) = chunk_rows(rewrites.path)
    assert (row["status"], row["text"], row["language"]) == ("accepted", GOOD, "es")
    assert "language" not in rewrites.settings
    moved = shutil.copytree(spanish, tmp_path / "moved" / "es")
    settings = settings.model_copy(update={"language": str(moved)})
    assert rewrite_corpus(settings, tmp_path / "out").content_hash == rewrites.content_hash  # known by its content
    (moved / PROMPTS_FOLDER / "other.md").write_text("version: 1\n\nCanta.\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"settings\.language_pack: made with"):
        rewrite_corpus(settings, tmp_path / "out")


# A study's language.

def nodes_of(*overrides):
    return {node.name: node for node in build_graph(load_study(QUICKSTART, [
        "judge.model=smollm2-135m-instruct", *overrides]))}


def test_the_default_changes_no_identity():
    plain, named = nodes_of(), nodes_of("language=pt")
    assert {name: node.identity for name, node in plain.items()} == {name: one.identity for name, one in named.items()}
    assert "language" not in plain["rewrite/high"].deciding


def test_a_study_hands_its_language_down(spanish, tmp_path):
    plain = nodes_of()
    own = nodes_of(f"language={spanish}", "rewriter.settings.styles=[plain]", "judge=null")
    assert own["rewrite/high"].settings["language"] == str(spanish)
    copy = shutil.copytree(spanish, tmp_path / "es")
    again = nodes_of(f"language={copy}", "rewriter.settings.styles=[plain]", "judge=null")
    assert again["rewrite/high"].identity == own["rewrite/high"].identity  # by its content
    (copy / PROMPTS_FOLDER / "plain.md").write_text("version: 2\n\nEscribe.\n", encoding="utf-8")
    changed = nodes_of(f"language={copy}", "rewriter.settings.styles=[plain]", "judge=null")
    assert changed["rewrite/high"].identity != own["rewrite/high"].identity
    assert own["select/high"].identity == plain["select/high"].identity


@pytest.mark.parametrize("overrides, told", [
    (["language=xx"], "language = 'xx': there are "), (["language=./none"], "none is no language pack"),
    (["rewriter.settings.language=xx"], "there are ")])
def test_an_unknown_language_is_told_in_a_line(overrides, told):
    with pytest.raises(UserError) as error:
        nodes_of(*overrides)
    assert told in str(error.value) and "\n" not in str(error.value)
