"""What the guides tell is so: links, commands, settings, the study of the first guide, every error message."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest
import yaml

from megatron_ext.config import RunConfig
from megatron_ext.settings import Settings
from megatron_ext.study.config import load_study
from tools import run_study, study_status, submit_study

ROOT = Path(__file__).parents[2]
GUIDES = {path.name: path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md"))}
TEXTS = {"README.md": (ROOT / "README.md").read_text(encoding="utf-8"),
         **{name: (ROOT / name).read_text(encoding="utf-8") for name in ("CHANGELOG.md", "CONTRIBUTING.md")},
         **{f"docs/{name}": text for name, text in GUIDES.items()}}
MESSAGES = re.findall(r"^\| `(.+?)` \|", GUIDES["troubleshooting.md"], re.MULTILINE)
ELLIPSIS = "…"


@pytest.mark.parametrize("name", TEXTS)
def test_every_link_leads_somewhere(name):
    for target in re.findall(r"\]\(([^)#]+)\)", TEXTS[name]):
        assert target.startswith("https://") or ((ROOT / name).parent / target).exists(), target


@cache
def told_by_the_source():
    """Every text of the source, with … for what is filled in."""
    texts = []
    for folder in ("megatron_ext", "evaluation", "tools"):
        for file in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    texts.append("".join(str(part.value) if isinstance(part, ast.Constant) else ELLIPSIS
                                         for part in node.values))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    texts.append(node.value)
    return "\n".join(texts)


@pytest.mark.parametrize("message", MESSAGES)
def test_every_message_is_told_by_the_source(message):
    pieces = [re.escape(piece.strip()) for piece in message.split(ELLIPSIS) if piece.strip()]
    assert re.search(r"[^\n]{0,80}".join(pieces), told_by_the_source()), message
    assert max(map(len, message.split(ELLIPSIS))) >= 12


def test_there_are_many_messages_each_once():
    assert len(MESSAGES) == len(set(MESSAGES)) >= 35


def test_a_message_that_is_not_told_would_be_found():
    assert "holds no shards and no hope" not in told_by_the_source()




def test_settings_of_a_run_that_guides_name_exist():
    named = set(re.findall(r"`((?:train|optimizer|model|data|parallel|checkpoint|schedule)\.[a-z_]+)[=`]",
                           GUIDES["troubleshooting.md"] + GUIDES["cluster.md"] + GUIDES["study.md"]))
    assert {"optimizer.lr", "train.skip_iterations", "model.layer_implementation"} <= named
    for key in named:
        section, name = key.split(".")
        fields: type[Settings] = RunConfig.model_fields[section].annotation
        assert name in fields.model_fields, key


def test_variables_of_a_site_that_the_guide_names_exist():
    site = (ROOT / "slurm" / "site.env").read_text(encoding="utf-8")
    named = set(re.findall(r"`([A-Z][A-Z_]{4,})`", GUIDES["cluster.md"]))
    assert {"SBATCH_OPTIONS", "GPUS_PER_NODE", "MAX_RESTARTS"} <= named
    assert [name for name in named if not re.search(rf"^{name}=", site, re.MULTILINE)] == []


@pytest.fixture
def first(tmp_path, monkeypatch):
    """The study file of the first guide, as a reader saves it."""
    monkeypatch.chdir(ROOT)
    [text] = re.findall(r"```yaml\n(.*?)```", GUIDES["study.md"], re.DOTALL)
    (tmp_path / "first.yaml").write_text(text, encoding="utf-8")
    return tmp_path / "first.yaml"


def test_the_first_study_has_a_plan_on_a_laptop_and_on_a_cluster(first, capsys):
    for program in (run_study, submit_study):
        assert program.main([str(first), "--work", str(first.parent / "work"), "--dry-run"]) == 0
        told = capsys.readouterr().out
        assert "run/high/seed0" in told
        assert "evaluate/low/seed0" in told
    assert not (first.parent / "work").exists()
    assert study_status.main([str(first.parent / "work")]) == 2


def test_the_first_study_asks_what_the_guide_says(first):
    study = load_study(first, [])
    assert set(study.conditions) == {"low", "high"}
    assert study.evaluation.primary == "neutral"
    assert not study.allow_differences
    assert yaml.safe_load(first.read_text())["name"] in GUIDES["study.md"].split("## 5")[1]
