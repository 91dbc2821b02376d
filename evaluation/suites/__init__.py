"""Any tasks of lm-evaluation-harness beside PoETa V2, as the harness itself evaluates them."""

from __future__ import annotations

from evaluation.suites.settings import SuiteSettings

__all__ = ["SuiteSettings"]
