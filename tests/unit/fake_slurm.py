"""sbatch and squeue that only write down what they are asked, for tests of what is submitted."""

import json
import os
import re
import sys

SBATCH = '''#!{python}
import json, os, pathlib, sys
folder = pathlib.Path({folder!r})
words = sys.argv[1:]
calls = folder / "calls.jsonl"
if "--test-only" in words:
    refused = folder / "refused"
    if refused.exists() and refused.read_text() in " ".join(words):
        sys.exit("sbatch: error: Batch job submission failed: Requested node configuration is not available")
    sys.exit(0)
number = 100 + (len(calls.read_text().splitlines()) if calls.exists() else 0)
with open(calls, "a") as file:
    file.write(json.dumps({{"id": str(number), "words": words, "environment": dict(os.environ)}}) + "\\n")
print(number)
'''
SQUEUE = '''#!{python}
import pathlib
queue = pathlib.Path({folder!r}) / "queue"
print(queue.read_text() if queue.exists() else "", end="")
'''


class FakeSlurm:
    """What was submitted, and what squeue is to say."""

    def __init__(self, folder, monkeypatch):
        self.folder = folder
        folder.mkdir()
        for name, text in {"sbatch": SBATCH, "squeue": SQUEUE}.items():
            (folder / name).write_text(text.format(python=sys.executable, folder=str(folder)))
            (folder / name).chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    @property
    def jobs(self):
        """Submitted jobs by name: id, options, script and its arguments."""
        calls = self.folder / "calls.jsonl"
        found = [json.loads(line) for line in calls.read_text().splitlines()] if calls.exists() else []
        return {_name(call["words"]): call for call in found}

    def forget(self):
        """Start a new list of submitted jobs; ids go on from 100 again."""
        (self.folder / "calls.jsonl").unlink(missing_ok=True)

    def set_queue(self, *entries):
        """(job id, state, reason, comment) of what is alive."""
        (self.folder / "queue").write_text("".join("|".join(entry) + "\n" for entry in entries))

    def refuse(self, option):
        """Let `sbatch --test-only` refuse jobs with this option."""
        (self.folder / "refused").write_text(option)


def option(call, name):
    """Value of an option of a submitted job; None where it is not there."""
    return next((word.partition("=")[2] for word in call["words"] if word.startswith(f"--{name}=")), None)


def _name(words):
    return re.sub(r"-[0-9a-f]{8}$", "", next(word for word in words if word.startswith("--job-name=")).split("=")[1])
