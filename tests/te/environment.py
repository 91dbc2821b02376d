"""Where the Python of Transformer Engine's tests is, and what makes it start with the stand-in.

    python -m tests.te.environment .venv-te      # by `make te`
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv-te" / "bin" / "python"
READY = ROOT / ".venv-te" / ".ready"
"""Is there when the environment is whole."""


def write_path_file(folder: Path) -> Path:
    """Let every Python of the environment see this checkout and the packages of the running one, and start adapted."""
    ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = subprocess.run([folder / "bin" / "python", "-c", ask], capture_output=True, text=True, check=True).stdout
    lines = [str(ROOT), sysconfig.get_path("purelib"), "import tests.te.on_cpu; tests.te.on_cpu.install()"]
    file = Path(site.strip()) / "te_on_cpu.pth"
    file.write_text("\n".join(lines) + "\n")
    return file


if __name__ == "__main__":
    write_path_file(Path(sys.argv[1]))
