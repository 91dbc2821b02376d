"""Secrets reach no manifest, provenance, log or report."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_ext.artifacts import produce
from megatron_ext.errors import UserError, exit_on_user_error
from megatron_ext.redaction import redact, redact_arguments, redact_text

ROOT = Path(__file__).parents[2]
SECRET = "hunter2-and-more"


@pytest.mark.parametrize("text", [
    f"http_proxy=http://me:{SECRET}@proxy:3128", f"postgres://me:{SECRET}@x@host/db", f"api_key: {SECRET}",
    f"'api_key': '{SECRET}'", f'{{"Authorization": "Bearer {SECRET}"}}', f"OPENAI_API_KEY={SECRET}",
    f"https://host/v1?api_key={SECRET}&n=1", f"model_args={{token: {SECRET}}}", f"password = {SECRET}",
    "sk-" + SECRET * 2, f"-----BEGIN RSA PRIVATE KEY-----\nabc\n{SECRET}\n-----END RSA PRIVATE KEY-----",
])
def test_secrets_in_texts(text):
    assert SECRET not in redact_text(text)
    assert SECRET not in json.dumps(redact({"value": [text]}))


@pytest.mark.parametrize("text", [
    "eos_token: </s>", "budget_tokens=10_000", "https://host:8000/v1/models", "hf://owner/name?split=train",
    "tokenizer=llama2", "max_gen_toks: 32", "a key = value", "api_key_variable: OPENAI_API_KEY", "2 tokens: 5",
])
def test_what_only_looks_like_one_stays(text):
    assert redact_text(text) == text
    name, _, value = text.partition("=")
    assert redact({name: value}) == {name: value}


@pytest.mark.parametrize("arguments", [
    [f"model_args={{api_key: {SECRET}}}"], [f"model_args.api_key={SECRET}"], ["--api-key", SECRET],
    [f"--hf-token={SECRET}"], [f"openai.base_url=http://u:{SECRET}@host/v1"],
])
def test_secrets_in_command_lines(arguments):
    kept = redact_arguments(["program", *arguments, "n=1"])
    assert SECRET not in " ".join(kept)
    assert kept[0] == "program" and kept[-1] == "n=1" and len(kept) == len(arguments) + 2


def test_a_manifest_holds_no_secret_and_the_request_is_still_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["run_poeta", f"model_args={{api_key: {SECRET}}}"])
    settings = {"model_args": {"api_key": SECRET, "base_url": f"http://u:{SECRET}@host/v1", "n": 3}}
    for _ in range(2):
        artifact = produce(tmp_path / "a", kind="evaluation", settings=settings, inputs={}, make=lambda folder: {})
        assert SECRET not in (tmp_path / "a" / "manifest.json").read_text()
        assert artifact.settings["model_args"]["n"] == 3


def test_an_error_message_holds_none(capsys):
    @exit_on_user_error
    def main():
        raise UserError(f"http://u:{SECRET}@host/v1 cannot be reached")

    assert main() == 2
    assert SECRET not in capsys.readouterr().err


RECORD = """
source <(sed -n '/^recorded_variables/p; /^redact() {/,/^}/p; /^record_provenance() {/,/^}/p' slurm/common.sh)
fail() { exit 1; }
record_provenance "$1"
"""


def test_provenance_holds_an_allow_list_of_variables_for_the_user_alone(tmp_path):
    (tmp_path / "site.env").write_text(f"export WANDB_API_KEY={SECRET}\nGPUS_PER_NODE=8\n")
    secret = {"DATABASE_URL": f"postgres://u:{SECRET}@h/d", "GITHUB_PAT": SECRET, "MY_THING": SECRET,
              "SSH_PRIVATE": f"first line\nPATH={SECRET}", "http_proxy": f"http://u:{SECRET}@p:1", "SLURM_JWT": SECRET,
              "NCCL_NET_PLUGIN": f"x://u:{SECRET}@h"}
    environment = {"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "3", "SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "2",
                   "SITE": str(tmp_path / "site.env"), **secret}
    script = tmp_path / "script"
    script.write_text(RECORD)
    subprocess.run(["bash", str(script), str(tmp_path)], cwd=ROOT, env=environment, check=True)
    folder = tmp_path / "provenance" / "7-0"
    files = list(folder.iterdir())
    assert {"environment", "site.env", "script", "commit", "packages", "job"} <= {file.name for file in files}
    for file in files:
        assert SECRET not in file.read_text(), file
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    lines = (folder / "environment").read_text().splitlines()
    assert "OMP_NUM_THREADS=3" in lines and "SLURM_JOB_NUM_NODES=2" in lines
    assert "GPUS_PER_NODE=8" in (folder / "site.env").read_text()
