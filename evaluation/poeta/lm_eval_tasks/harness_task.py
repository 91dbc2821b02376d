"""What the YAML files here point to. Makes the checkout importable from wherever `lm_eval` is started."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from evaluation.poeta.harness import HarnessTask

__all__ = ["HarnessTask"]
