"""What `pip install -e .` gives: all files, the pinned requirements, and every program under one name."""

import contextlib
import importlib
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from setuptools import Distribution

from tools.__main__ import PACKAGES, programs, summary

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def distribution():
    place = os.getcwd()
    os.chdir(ROOT)
    try:
        found = Distribution({"script_name": "setup.py"})
        found.parse_config_files()
        yield found
    finally:
        os.chdir(place)


def pinned(file):
    lines = (line.partition(" #")[0].strip() for line in (ROOT / file).read_text(encoding="utf-8").splitlines())
    return {str(Requirement(line)) for line in lines if line and not line.startswith("#")}


@pytest.mark.parametrize("extra, file", [("gpu", "requirements-gpu.txt"), ("test", "tests/requirements.txt")])
def test_an_extra_is_a_requirements_file(extra, file, distribution):
    assert {str(Requirement(line)) for line in distribution.extras_require[extra]} == pinned(file) != set()


def test_what_is_pinned_is_what_is_installed(distribution):
    assert {str(Requirement(line)) for line in distribution.install_requires} == pinned("requirements.txt")
    assert "torch" in {Requirement(line).name for line in distribution.install_requires}


def test_every_file_of_the_packages_is_installed_and_nothing_else(distribution):
    build = distribution.get_command_obj("build_py")
    build.ensure_finalized()
    data = {Path(source) / name for _, source, _, names in build.data_files for name in names}
    installed = {str(path) for path in data | {Path(file) for *_, file in build.find_all_modules()}}
    listed = subprocess.run(["git", "ls-files", "--cached", "--others", "--exclude-standard", *PACKAGES], cwd=ROOT,
                            capture_output=True, text=True, check=True).stdout.splitlines()
    assert installed == {name for name in listed if (ROOT / name).exists()}


def test_programs_have_names_of_their_own():
    found = programs()
    assert len(set(found.values())) == len(found) >= 30
    texts = (ROOT / "README.md").read_text(encoding="utf-8") + (ROOT / "Makefile").read_text(encoding="utf-8")
    named = set(re.findall(r"-m ((?:tools|megatron_ext|evaluation)(?:\.\w+)+)", texts))
    assert named <= set(found.values())
    assert all(re.fullmatch(r"[a-z][a-z0-9-]*", name) for name in found)


@pytest.mark.parametrize("name", programs())
def test_every_program_has_help(name, monkeypatch):
    module = programs()[name]
    assert summary(module)
    file = f"{module}.__main__" if module == "evaluation.report" else module
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    told = io.StringIO()
    with contextlib.redirect_stdout(told), pytest.raises(SystemExit) as leaving:
        importlib.import_module(file).main()
    assert leaving.value.code == 0
    assert told.getvalue().startswith("usage: ")


def start(*words, cwd):
    command = [sys.executable, "-c", "import sys; sys.argv[0] = 'megatron-ext'; from tools.__main__ import main; "
               "sys.exit(main())", *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env={**os.environ, "PYTHONSAFEPATH": "1",
                                                                                 "PYTHONPATH": str(ROOT)})


def test_a_program_starts_in_a_folder_that_has_tools_of_its_own(tmp_path):
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "__init__.py").write_text("raise SystemExit('the wrong tools')")
    done = start("clean", str(tmp_path / "nowhere"), cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert "nowhere" in done.stderr


def test_what_there_is_and_what_is_near_is_told(tmp_path):
    done = start("run-studdy", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: there is no program 'run-studdy'; near it: run-study")
    listed = start("--help", cwd=tmp_path)
    assert listed.returncode == 0
    assert all(f"  {name} " in listed.stdout for name in programs())
    assert start(cwd=tmp_path).returncode == 2
