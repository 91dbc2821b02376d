"""Every program, called wrongly in every way that we could think of: exit code 2 and one message, never a traceback."""

import contextlib
import importlib
import io
import json
import os
import subprocess
import sys

import pytest

STAGES = ("tools.fetch_model", "tools.select_corpus", "tools.rewrite_corpus", "tools.judge_rewrites",
          "tools.take_originals", "tools.tokenize_corpus", "tools.import_hf", "tools.check_parity", "tools.export_hf",
          "tools.merge_checkpoints", "tools.poeta_items", "evaluation.run_poeta", "evaluation.compare",
          "evaluation.report.__main__", "megatron_ext.validate")
STUDIES = ("tools.run_study", "tools.submit_study")
OTHERS = ("megatron_ext.train", "tools.estimate_rewriting", "tools.inspect_data", "tools.show_batch",
          "tools.plot_runs", "tools.verify_artifact", "tools.report_study", "tools.clean",
          "tools.study_status")

FILES = {
    "twice.yaml": b"output: a\noutput: b\n", "circle.yaml": b"base: circle.yaml\n",
    "latin.yaml": "a: ação".encode("latin-1"),
    "wide.yaml": "a: b".encode("utf-16"), "tabs.yaml": b"a:\n\tb: c\n", "list.yaml": b"- a\n", "word.yaml": b"word",
    "zeros.yaml": b"\0" * 64, "open.yaml": b"a: [b", "deep.yaml": b"a: " + b"[" * 20_000, "itself.yaml": b"a: &a [*a]",
    "nan.yaml": b"a: .nan", "tag.yaml": b"a: !!python/name:os.system", "unknown.yaml": b"no_such_key: 1\n",
    "orphan.yaml": b"base: nowhere.yaml\n", "documents.yaml": b"---\na: 1\n---\nb: 2\n", "empty.yaml": b"",
    "huge.yaml": b"a: " + b"9" * 6_000, "plain": b"",
}
OF_A_CONFIG = [name for name in FILES if name not in ("plain",)]
OF_OUTPUT = {
    "a file": "plain", "below a file": "plain/x", "empty": "", "above": "..", "here": ".", "the root": "/",
    "a name too long": "x" * 5_000, "nobody's home": "~nobody-of-this-name/x", "no UTF-8": "a\udcff",
    "a link to nothing": "astray", "below a link to nothing": "astray/x", "a circle of links": "circle/x",
}
OF_OVERRIDES = {
    "no value": ["word"], "no key": ["=1"], "an unknown key": ["no_such_key=1"],
    "an unknown key below": ["no.such.key=1"],
    "only dots": ["...=1"], "infinity": ["no_such_key=.inf"], "an open bracket": ["no_such_key=[", "x"],
    "no UTF-8": ["no_such_key=\udcff"], "a tag": ["no_such_key=!!python/name:os.system"],
    "digits without end": ["no_such_key=" + "9" * 5_000], "brackets without end": ["no_such_key=" + "[" * 20_000],
}
OPTIONS = {"an unknown option": ["--no-such-option"], "an option cut short": ["--outpu", "x"], "no value": ["--config"],
           "a dash": ["-"], "dashes": ["---"]}
PARTS = {"a part of none": ["--part", "0/0"], "a part past the end": ["--part", "3/3"],
         "a part in words": ["--part", "one"],
         "a negative part": ["--part=-1/3"], "a merge of none": ["--merge", "0"],
         "a merge in words": ["--merge", "all"],
         "both": ["--part", "0/2", "--merge", "2"]}
SHARED = ("tools.select_corpus", "tools.rewrite_corpus", "tools.tokenize_corpus")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("command_lines")
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text(json.dumps({"architectures": ["Nobody"]}))
    (folder / "nothing").mkdir()
    (folder / "astray").symlink_to("nowhere")
    (folder / "circle").symlink_to("circle")
    return folder


def called(program, arguments, folder):
    """(exit code, what was told) of a program that is called in a folder."""
    told, argv, place = io.StringIO(), sys.argv, os.getcwd()
    sys.argv = [program, *map(str, arguments)]
    os.chdir(folder)
    try:
        with contextlib.redirect_stderr(told), contextlib.redirect_stdout(io.StringIO()):
            code = importlib.import_module(program).main()
    except SystemExit as leaving:
        code = leaving.code
    finally:
        sys.argv = argv
        os.chdir(place)
    return code, told.getvalue()


def lines_of_a_stage():
    """Name -> arguments, wrong for every stage."""
    lines = {"nothing at all": []}
    lines |= {f"options: {name}": ["--output", "x", *words] for name, words in OPTIONS.items()}
    lines |= {f"output: {name}": ["--output", text] for name, text in OF_OUTPUT.items()}
    lines |= {f"config: {name}": ["--output", "x", "--config", name] for name in OF_A_CONFIG}
    lines |= {f"config: {name}": ["--output", "x", "--config", name]
              for name in ("nowhere.yaml", "nothing", "", "x" * 5_000)}
    lines |= {f"override: {name}": ["--output", "x", *words] for name, words in OF_OVERRIDES.items()}
    lines |= {f"dry run, {name}": [*words, "--dry-run"] for name, words in list(lines.items())[-4:]}
    return lines


LINES = lines_of_a_stage()


def test_there_are_many():
    assert len(LINES) + len(PARTS) + len(OF_STUDIES) + len(OF_OTHERS) >= 60


@pytest.mark.parametrize("program", STAGES)
def test_a_stage_that_is_called_wrongly_says_so(program, folder):
    lines = LINES | ({f"share: {name}": ["--output", "x", *words] for name, words in PARTS.items()}
                     if program in SHARED else {})
    for name, words in lines.items():
        code, told = called(program, words, folder)
        assert code == 2, (name, code, told)
        assert "error: " in told, (name, told)
        assert "Traceback" not in told, (name, told)
        assert len(told) < 60_000, name
    assert not (folder / "x").exists()


PLACES_THAT_ARE_NONE = {
    "tools.fetch_model": ["model=./nowhere", "model=no model", "model=", "model=plain", "model=nothing"],
    "tools.select_corpus": ["corpus=nowhere tokenizer=null", "corpus=nothing tokenizer=null",
                            "corpus=plain tokenizer=null", "corpus=nothing tokenizer=nowhere",
                            "corpus= tokenizer=null"],
    "tools.rewrite_corpus": ["documents=nowhere model=model tokenizer=model", "documents=plain model=x tokenizer=y"],
    "tools.judge_rewrites": ["rewrites=nowhere model=model", "rewrites=nothing model=model", "rewrites=plain model=x"],
    "tools.tokenize_corpus": ["documents=nowhere tokenizer=model", "documents=nothing tokenizer=nowhere",
                              "documents=nothing tokenizer=plain"],
    "tools.import_hf": ["model=nowhere", "model=model", "model=plain"],
    "tools.check_parity": ["model=nowhere", "model=model checkpoint=a other=b"],
    "tools.export_hf": ["checkpoint=nowhere", "checkpoint=nothing"],
    "tools.merge_checkpoints": ["checkpoints=[nowhere, nothing]", "checkpoints=[nothing, nothing]",
                                "checkpoints=[plain, plain]", "checkpoints=[]", "checkpoints=nothing"],
    "evaluation.run_poeta": ["model=nowhere", "model=nothing", "model=plain", "model=model tasks=[no_such_task]"],
    "evaluation.compare": ["evaluations={a: [nowhere]} baseline=a", "evaluations={a: []} baseline=a",
                           "evaluations={a: [plain]} baseline=b", "evaluations={} baseline=a"],
    "evaluation.report.__main__": ["study=nowhere", "study=plain", "study=nothing"],
}


@pytest.mark.parametrize("program", PLACES_THAT_ARE_NONE)
@pytest.mark.parametrize("is_dry", [True, False], ids=["dry run", "run"])
def test_a_stage_whose_inputs_are_none_says_so(program, is_dry, folder):
    if not is_dry and program in ("tools.import_hf", "tools.check_parity", "tools.export_hf"):
        pytest.skip("starts process groups; tests/cpu runs these")
    for line in PLACES_THAT_ARE_NONE[program]:
        code, told = called(program, ["--output", "x", *line.split(), *(["--dry-run"] if is_dry else [])], folder)
        assert code == 2, (line, code, told)
        assert "error: " in told, (line, told)
    assert not (folder / "x").exists()


OF_STUDIES = {
    "nothing at all": [], "no work folder": ["empty.yaml"], "no study": ["--work", "x"],
    "no such file": ["nowhere.yaml", "--work", "x"], "a folder": ["nothing", "--work", "x"],
    "work in a file": ["empty.yaml", "--work", "plain"], "work nowhere": ["empty.yaml", "--work", ""],
    "an unknown option": ["empty.yaml", "--work", "x", "--dry"], "no override": ["empty.yaml", "--work", "x", "=a"],
    **{name: [name, "--work", "x"] for name in OF_A_CONFIG},
    **{f"{name}, dry run": [name, "--work", "x", "--dry-run"] for name in OF_A_CONFIG},
}


@pytest.mark.parametrize("program", STUDIES)
def test_a_study_that_is_called_wrongly_says_so(program, folder, monkeypatch):
    monkeypatch.setenv("SITE", os.path.abspath("slurm/site.env"))
    for name, words in OF_STUDIES.items():
        code, told = called(program, words, folder)
        assert code == 2, (name, code, told)
        assert "error: " in told, (name, told)
    assert not (folder / "x").exists()


OF_OTHERS = {
    "megatron_ext.train": [[], ["--config"], ["--config", "nowhere.yaml"], ["--config", "empty.yaml"],
                           ["--config", "empty.yaml", "--num-processes", "many"], ["--config", "twice.yaml"],
                           ["--config", "empty.yaml", "output=plain", "model.hf_folder=nowhere",
                            "train.budget_tokens=1", "data.sources.a={path: nowhere, fill: true}"],
                           ["--config", "empty.yaml", "output=x", "model.hf_folder=model", "train.budget_tokens=1",
                            "data.sources={}", "--num-processes", "0"],
                           ["--config", "empty.yaml", "output=x", "train.budget_tokens=-1", "--dry-run"]],
    "tools.estimate_rewriting": [[], ["--seconds", "soon"], ["documents=nowhere"], ["--config", "twice.yaml"]],
    "tools.inspect_data": [[], ["nowhere"], ["plain"], ["nothing", "--split", "test"], ["nothing", "--document", "one"],
                           ["nothing", "--document", "-1"], ["nothing", "--document", "1", "--sequence", "2"]],
    "tools.show_batch": [[], ["--config", "empty.yaml"], ["--config", "nowhere", "--iteration", "1"],
                         ["--config", "empty.yaml", "--iteration", "one"]],
    "tools.plot_runs": [[], ["nothing"], ["nowhere", "--output", "x.png"], ["nothing", "--output", "x.png"]],
    "tools.verify_artifact": [[], ["nowhere"], ["nothing"], ["plain"], ["nothing", "--root"]],
    "tools.report_study": [[], ["nothing"], ["nowhere", "x"], ["nothing", "x"], ["plain", "x"]],
    "tools.study_status": [[], ["nowhere"], ["nothing"], ["plain"], ["nothing", "name"],
                           ["nothing", "--interval", "soon"], ["nothing", "--interval", "0"], ["nothing", "--wat"]],
    "tools.clean": [[], ["nowhere"], ["nothing"], ["plain"], ["nothing", "twice.yaml"], ["nothing", "a=b"],
                    ["nothing", "--deleet"]],
}


@pytest.mark.parametrize("program", OTHERS)
def test_any_other_program_that_is_called_wrongly_says_so(program, folder):
    for words in OF_OTHERS[program]:
        code, told = called(program, words, folder)
        assert code == 2, (words, code, told)
        assert "error: " in told, (words, told)
    assert not (folder / "x").exists()


def test_a_reader_that_leaves_is_no_mistake():
    """`… --help | head -1`, `… --dry-run | head`: nothing is told on stderr."""
    command = [sys.executable, "-m", "tools.run_study", "examples/studies/paper_7b.yaml", "--work", "/tmp/never-made",
               "--dry-run"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          env=os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}) as process:
        process.stdout.close()
        told = process.stderr.read()
    assert told == b""
    assert process.returncode == 141
