"""Which settings each program of a study takes: the one table from which a study file and its stages are checked."""

from __future__ import annotations

from functools import cache
from importlib import import_module

from megatron_ext.settings import Settings

PROGRAMS = {
    "tools.fetch_model": "megatron_ext.data.model_folder:ModelSettings",
    "tools.select_corpus": "megatron_ext.data.selection.settings:SelectSettings",
    "tools.rewrite_corpus": "megatron_ext.data.rewriting.settings:RewriteSettings",
    "tools.judge_rewrites": "megatron_ext.data.rewriting.judge.settings:JudgeSettings",
    "tools.take_originals": "megatron_ext.data.rewriting.originals:OriginalsSettings",
    "tools.tokenize_corpus": "megatron_ext.data.tokenization:TokenizeSettings",
    "tools.find_overlap": "megatron_ext.data.selection.overlap:OverlapSettings",
    "tools.check_parity": "megatron_ext.model.settings:ParitySettings",
    "tools.merge_checkpoints": "megatron_ext.model.settings:MergeSettings",
    "tools.export_hf": "megatron_ext.model.settings:ExportSettings",
    "megatron_ext.train": "megatron_ext.config:RunConfig",
    "megatron_ext.validate": "megatron_ext.training.settings:HeldOutSettings",
    "tools.suite_items": "evaluation.suites.items:SuiteItemsSettings",
    "evaluation.run_poeta": "evaluation.poeta.run:PoetaSettings",
    "evaluation.compare": "evaluation.compare:CompareSettings",
    "evaluation.compare_held_out": "evaluation.compare_held_out:CompareHeldOutSettings",
    "evaluation.compare_suites": "evaluation.compare_suites:CompareSuitesSettings",
    "evaluation.report": "evaluation.report.page:ReportSettings",
}
"""Program -> place of its settings class; imported when it is asked for, none of them needs torch."""


@cache
def settings_of(program: str) -> type[Settings]:
    """The settings class of a program of a study."""
    module, _, name = PROGRAMS[program].partition(":")
    return getattr(import_module(module), name)
