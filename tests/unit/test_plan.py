"""The plan of a study: every mistake before anything runs, and what will be done, with the reason."""

import errno
import json
from pathlib import Path

import pytest
import yaml

from megatron_ext.errors import UserError
from megatron_ext.study import plan
from megatron_ext.study.config import load_study
from megatron_ext.study.plan import examine, load_studies
from megatron_ext.study.programs import PROGRAMS, settings_of
from tools import run_study

QUICKSTART = Path("examples/quickstart/study.yaml")
BUDGET = yaml.safe_load(Path("examples/base/smollm2_135m_cpu.yaml").read_text())["train"]["budget_tokens"]


@pytest.fixture(autouse=True)
def without_network(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def dry_run(capsys, *arguments):
    code = run_study.main([*map(str, arguments), "--dry-run"])
    out, err = capsys.readouterr()
    return code, out + err


LATE_MISTAKES = {
    "a misspelt setting of the evaluation": ("evaluation.settings.taks=[faquad]",
                                             "unknown key 'evaluation.settings.taks'; did you mean 'tasks'?"),
    "an unknown task": ("evaluation.settings.tasks=[faqad]", "no task 'faqad'; did you mean 'faquad'?"),
    "an unknown profile": ("evaluation.settings.profile=klean", "evaluation.settings.profile = 'klean'"),
    "an outcome that is not scored": (
        "evaluation.primary=cloze_accuracy",
        "'cloze_accuracy' is no outcome of validation, validation_sources, evaluation.suites or "
        "evaluation.settings.scoring"),
    "an unknown device": ("evaluation.settings.device=cuda0", "evaluation.settings.device = 'cuda0': is no device"),
    "an unknown scoring": ("evaluation.settings.scoring=[generate, golden]", "evaluation.settings.scoring"),
    "a scoring without NPM": ("evaluation.settings.scoring=[gold]", "lacks generate, which NPM follows from"),
    "likelihoods of a server": ("evaluation.settings={backend: local-completions, scoring: [generate, gold]}",
                                "which backend 'local-completions' does not give here"),
    "an unknown backend": ("evaluation.settings.backend=vllmm", "evaluation.settings.backend = 'vllmm'"),
    "a broken rule": ("subsets.high.rule=stem >", "subsets.high.rule 'stem >' cannot be read"),
    "a rule over no score": ("subsets.high.rule=quality > 2", "names quality; the scores are: edu, stem"),
    "an unknown style": ("rewriter.settings.styles=[easi]", "rewriter.settings: styles: no prompt for easi"),
    "an unknown engine": ("rewriter.settings.engine=vlm", "rewriter.settings.engine = 'vlm'"),
    "an address that is none": ("rewriter.settings={engine: openai, openai: {base_url: localhost}}", "http://"),
    "absent prompts": ("rewriter.settings.prompts_folder=/nowhere", "/nowhere: no such folder"),
    "absent thresholds": ("rewriter.settings.thresholds_file=/nowhere.yaml", "/nowhere.yaml cannot be read"),
    "absent test items": ("select.test_items=/nowhere #1", "select.test_items = /nowhere #1: nothing is there"),
    "absent raw data": ("evaluation.settings.data=/nowhere", "evaluation.settings.data = /nowhere: nothing is there"),
    "an unknown interaction": ("evaluation.interactions.x=[high, low, base, lowe]", "'lowe' is no condition"),
    "an interaction of three": ("evaluation.interactions.x=[high, low, base]", "needs four conditions"),
    "an unknown baseline": ("evaluation.baseline=hi", "evaluation.baseline: 'hi' is no condition"),
    "an unknown difference": ("allow_differences=[optimizer.lrr]", "did you mean 'optimizer.lr'?"),
    "a seed twice": ("seeds=[1, 1]", "seeds = [1, 1]: 1 is there twice; remove one"),
    "a task twice": ("evaluation.settings.tasks=[faquad, faquad]", "faquad is there twice"),
    "a style twice": ("rewriter.settings.styles=[easy, easy]", "easy is there twice"),
    "a subset rewritten twice": ("rewriter.subsets=[high, high]", "rewriter.subsets = ['high', 'high']: high is there"),
    "a held-out text twice": ("validation_sources=[low, low]", "low is there twice"),
    "a checkpoint kept twice": ("run.checkpoint.keep_tokens=[2048, 2048]", "2048 is there twice"),
    "a negative seed": ("seeds=[-1]", "seeds.0 = -1"),
    "an infinite rate": ("run.optimizer.lr=.inf", "run.optimizer.lr: inf: must be a finite number"),
    "a model that is none": ("rewriter.model=no model", "rewriter.model = 'no model': no such folder"),
    "an absent column": ("corpus.scores.stem=stem_rating", "has no column 'stem_rating'"),
    "a layout that does not fit": ("run.parallel.tensor_model_parallel_size=2", "does not divide the model's"),
    "a fraction of 3": ("conditions.low.sources.low={fraction: 3}", "data.sources.low.fraction = 3"),
    "a source of nothing": ("conditions.high.sources={high: {fill: true}, low: {epochs: 0.0001}}",
                            "data.sources.low: of its 17,000 tokens the run would see nothing"),
    "equal conditions": ("conditions.high.sources={low: {fill: true}}", "conditions 'low' and 'high' are equal"),
    "a setting that is not the user's": ("evaluation.settings.model=x", "evaluation.settings.model is set by"),
    "a seed that is not the run's": ("run.train.seed=3", "run.train.seed is set by what stands around it"),
    "a decay without effect": ("run.schedule.decay_fraction=0.2", "schedule.decay_fraction is of style WSD alone"),
    "a decay that never ends": ("run.schedule.decay_tokens=0", "run.schedule.decay_tokens = 0"),
    "nothing held out": ("tokenize.valid_fraction=0", "validation_sources: nothing is held out"),
    "more than all held out": ("tokenize.valid_fraction=1.5", "tokenize.valid_fraction = 1.5"),
    "all held out": ("tokenize.valid_fraction=1", "tokenize.valid_fraction = 1 holds out all text"),
    "neutral text of no documents": ("validation.neutral=examples/base", "validation.neutral: corpus examples/base"),
    "neutral text without the column": ("validation.text_column=txt", "validation.neutral: examples/quickstart"),
    "neutral text of the corpus": ("validation.neutral=examples/quickstart/corpus/web.jsonl",
                                   "validation.neutral lies in the corpus"),
    "a name longer than a file's": ("subsets=" + json.dumps({"s" * 101: {"rule": "stem > 1", "budget_tokens": 9}}),
                                    "at most 100 bytes"),
    "a study's name longer than a file's": ("name=" + "n" * 101, "name has 101 bytes, and may have 100"),
    "a checkpoint beyond the run": ("evaluation.checkpoints=[9999]", "no checkpoint of its own after 9,999 tokens"),
    "a kept checkpoint beyond the run": ("run.checkpoint.keep_tokens=[9999]", "keep_tokens 9,999 lies beyond"),
    "a kept checkpoint before the run": ("run.checkpoint.keep_tokens=[-1]", "run.checkpoint.keep_tokens.0 = -1"),
    "nothing trained on": ("run.train.skip_iterations=[[1, 3], [4, 99]]", "pass over all 8 iterations"),
    "no length that passes": ("select={min_chars: 9, max_chars: 8}", "max_chars 8 is below min_chars 9"),
    "a stranger with the base's name": ("evaluation.outside.base=a/b", "outside.base: the base model has this name"),
    "a stranger with a condition's name": ("evaluation.outside.low=a/b", "outside.low: a condition has this name"),
    "a tokenizer that is none": ("tokenizer=examples/base", "examples/base holds no tokenizer*"),
    "a rewriter that is none": ("rewriter.model=examples/base", "examples/base holds no config.json"),
    "a time that is none": ("jobs.run.time=one day", "jobs.run.time = 'one day'"),
    "no base model": ("base_model=", "base_model = '': no such folder, and no Hugging Face id"),
    "an absent run file": ("run_file=nowhere.yaml", "run_file: nowhere.yaml cannot be read"),
    "an absent corpus column of text": ("corpus.text_column=texto", "has no column 'texto'"),
}


@pytest.mark.parametrize("name", LATE_MISTAKES)
def test_a_mistake_of_any_stage_is_told_before_anything_runs(name, tmp_path, capsys):
    override, message = LATE_MISTAKES[name]
    code, told = dry_run(capsys, QUICKSTART, "--work", tmp_path / "work", override)
    assert code == 2
    assert message in told
    assert not (tmp_path / "work").exists()


def test_mistakes_of_several_stages_are_told_at_once(tmp_path, capsys):
    code, told = dry_run(capsys, QUICKSTART, "--work", tmp_path, "evaluation.settings.taks=[a]", "seeds=[-1]",
                         "select.max_char=3", "tokenize.valid_fraction=2", "run.train.micro_batch_sise=1")
    assert code == 2
    for key in ("evaluation.settings.taks", "seeds.0", "select.max_char", "tokenize.valid_fraction",
                "run.train.micro_batch_sise"):
        assert key in told
    code, told = dry_run(capsys, QUICKSTART, "--work", tmp_path, "subsets.high.rule=>", "evaluation.baseline=x",
                         "allow_differences=[y]")
    assert all(name in told for name in ("subsets.high.rule", "evaluation.baseline", "allow_differences"))
    code, told = dry_run(capsys, QUICKSTART, "--work", tmp_path, "corpus.scores.stem=x", "select.test_items=/nowhere",
                         "run.parallel.pipeline_model_parallel_size=7", "conditions.low.sources.low.max_epochs=0.1")
    assert all(name in told for name in ("has no column 'x'", "select.test_items", "7 pipeline stages", "max_epochs"))


def test_the_table_of_programs_names_the_classes_that_the_programs_parse():
    for program, place in PROGRAMS.items():
        source = Path(program.replace(".", "/") + ".py")
        source = source if source.exists() else Path(program.replace(".", "/")) / "__main__.py"
        assert place.partition(":")[2] in source.read_text(encoding="utf-8"), program
        assert settings_of(program).model_fields


def test_a_big_study_is_planned_without_its_data(tmp_path, capsys):
    code, told = dry_run(capsys, "examples/studies/paper_7b.yaml", "--work", tmp_path)
    assert code == 0
    assert "GPU-hours" in told
    assert "corpus.path data/classicc-pt does not exist: its columns are not checked" in told
    assert "meta-llama/Llama-2-7b-hf is not fetched" in told


def test_what_is_not_there_is_no_mistake_of_a_plan_but_of_a_run(tmp_path, capsys):
    override = f"corpus.path={tmp_path / 'nowhere'}"
    assert dry_run(capsys, QUICKSTART, "--work", tmp_path / "work", override)[0] == 0
    assert run_study.main([str(QUICKSTART), "--work", str(tmp_path / "work"), override]) == 2
    assert "nowhere does not exist" in capsys.readouterr().err


@pytest.fixture
def study(tmp_path):
    """A study file in a folder of its own, with its corpus and run file beside it."""
    folder = tmp_path / "mine"
    (folder / "corpus").mkdir(parents=True)
    row = {"id": "1", "text": "olá", "stem_score": 3.0, "edu_score": 3.0}
    (folder / "corpus" / "a.jsonl").write_text(json.dumps(row) + "\n")
    (folder / "run.yaml").write_text(Path("examples/base/smollm2_135m_cpu.yaml").read_text())
    values = yaml.safe_load(QUICKSTART.read_text()) | {"run_file": "run.yaml"}
    values["validation"]["neutral"] = str(Path("examples/quickstart/neutral").absolute())
    values["corpus"]["path"] = "corpus"
    (folder / "study.yaml").write_text(yaml.safe_dump(values))
    return folder / "study.yaml"


def test_every_path_of_a_study_file_is_looked_for_beside_it(study, tmp_path):
    loaded = load_study(study, [])
    assert loaded.corpus.path == study.parent / "corpus"
    assert loaded.run["train"]["budget_tokens"] == BUDGET


def test_else_in_the_working_folder(study, tmp_path, monkeypatch):
    for name in ("corpus", "run.yaml"):
        (study.parent / name).rename(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    loaded = load_study(study, [])
    assert loaded.corpus.path == Path("corpus")
    assert loaded.run["train"]["budget_tokens"] == BUDGET


def test_a_path_that_could_be_both_is_refused(study, tmp_path, monkeypatch):
    (tmp_path / "corpus").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"corpus\.path = corpus is in the study file's folder and in"):
        load_study(study, [])


def test_a_path_of_the_command_line_is_one_of_the_working_folder(study, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_study(study, ["corpus.path=elsewhere #2"]).corpus.path == Path("elsewhere #2")


def test_the_size_of_a_model_folder_is_counted(study, tmp_path, capsys):
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps({
        "architectures": ["LlamaForCausalLM"], "vocab_size": 1000, "hidden_size": 100, "intermediate_size": 300,
        "num_hidden_layers": 4, "num_attention_heads": 4, "max_position_embeddings": 512}))
    code, told = dry_run(capsys, study, "--work", tmp_path / "work", f"base_model={model}")
    # 2 x 1000 x 100 + 4 x (4 x 100^2 + 3 x 100 x 300 + 200) + 100
    assert code == 0, told
    assert f"6 x 720,900 x {BUDGET:,} tokens" in told


@pytest.mark.parametrize("key", ["tokenizer", "rewriter.model", "corpus.path", "evaluation.outside.other"])
def test_what_cannot_be_read_is_told_with_the_setting_that_names_it(study, tmp_path, capsys, monkeypatch, key):
    def build(study):
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "closed" / "inside"))

    (tmp_path / "closed").mkdir()
    monkeypatch.setattr(plan, "build_graph", build)
    code, told = dry_run(capsys, study, "--work", tmp_path / "work", f"{key}={tmp_path / 'closed'}")
    assert code == 2
    assert f"{key} = {tmp_path / 'closed'} cannot be read: {tmp_path / 'closed' / 'inside'}: Permission denied" in told


def test_studies_with_mistakes_are_all_told(study, tmp_path):
    other = study.with_name("other.yaml")
    other.write_text(study.read_text().replace("baseline: low", "baseline: lower"))
    study.write_text(study.read_text().replace("name: quickstart", "nome: quickstart"))
    with pytest.raises(UserError, match=r"(?s)nome.*lower"):
        load_studies([study, other], [])


def test_a_finding_is_told_once(study, tmp_path):
    findings = examine(load_studies([study], ["seeds=[0, 1, 2]", "corpus.scores.stem=x"]), tmp_path)
    assert len(findings.problems) == 1
