"""Run a study on this machine: python -m tools.run_study STUDY.yaml --work DIR [--dry-run] [key=value …]

Stages that are finished are not run again; an interrupted one goes on where it stopped. `--dry-run` checks everything
that can be known before, and prints what would be done, what it costs, and what is made again and why.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from megatron_ext.errors import exit_on_user_error
from megatron_ext.progress import format_seconds
from megatron_ext.settings import folder_argument, path_argument
from megatron_ext.study.checks import missing_corpora
from megatron_ext.study.config import StudyConfig
from megatron_ext.study.job_settings import JobSettings
from megatron_ext.study.jobs import plan_jobs
from megatron_ext.study.nodes import Node
from megatron_ext.study.overview import describe_plan
from megatron_ext.study.plan import Findings, PlannedStudy, examine, load_studies
from megatron_ext.study.report_input import write_study_record
from megatron_ext.study.reporting import keep_study
from megatron_ext.study.runner import Outcome, run_nodes, run_report, stage_seconds
from megatron_ext.study.site import THIS_MACHINE
from megatron_ext.study.status import job_states


@exit_on_user_error
def main(argv: list[str] | None = None) -> int:
    """Run the study, make its report, and tell where things are."""
    arguments = _parse(argv)
    started = time.monotonic()
    studies = load_studies([arguments.study], arguments.overrides)
    findings = examine(studies, arguments.work)
    if not arguments.dry_run:
        findings.problems += missing_corpora(studies)
    findings.refuse("nothing was run")
    if arguments.dry_run:
        _print_plan(studies, findings, arguments.work)
        return 0
    [(study, nodes)] = [(planned.study, planned.nodes) for planned in studies]
    keep_study(study, nodes, arguments.work)
    outcome = run_nodes(nodes, arguments.work)
    report = _report(outcome, study, nodes, arguments.work)
    duration = format_seconds(time.monotonic() - started)
    print(f"\nstudy {study.name}: " + (f"{outcome.num_run} stages ran in {duration}" if outcome.num_run
                                       else "nothing to do, everything is up to date"))
    for name, why in outcome.refused.items():
        print(f"refused: {name}: {why}")
    _print_places(nodes, report, arguments.work)
    return 0


def _print_plan(studies: list[PlannedStudy], findings: Findings, work: Path) -> None:
    """The same plan as submit_study's; here every stage is one job."""
    alone = [PlannedStudy(one.study.model_copy(update={"jobs": JobSettings()}), one.nodes) for one in studies]
    jobs = plan_jobs(alone, work, THIS_MACHINE)
    print("\n".join(describe_plan(alone, jobs, job_states(jobs, work, {}), findings, work)))


def _report(outcome: Outcome, study: StudyConfig, nodes: list[Node], work: Path) -> Path:
    """The page of what is there. Raises StageError after it when something is missing."""
    report = None
    if any(node.kind == "comparison" for node in outcome.nodes):
        report = run_report(write_study_record(study, nodes, work), work)
        if outcome.failures:
            print(f"\nreport of what is there: {report / 'report.html'}", flush=True)
    outcome.require_all()
    assert report is not None
    return report


def _print_places(nodes: list[Node], report: Path, work: Path) -> None:
    seconds = stage_seconds(nodes, work)
    print("seconds of each stage, over all launches:")
    for stage, value in seconds.items():
        print(f"  {stage:40s} {value:8.1f}")
    print(f"report:      {report / 'report.html'}   (open it in a browser: verdict, losses, blend, chain of hashes)\n"
          f"runs:        {work / 'run'}/*/seed*/   metrics.jsonl, exposure.json, checkpoints/\n"
          f"models:      {work / 'export'}/*/seed*/   Hugging Face folders, for AutoModelForCausalLM\n"
          f"evaluations: {work / 'evaluate'}/base-*/, {work / 'evaluate'}/*/seed*/   results.json, examples.jsonl\n"
          f"logs:        {work / 'logs'}/")


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=path_argument, help="study file")
    parser.add_argument("--work", type=folder_argument, required=True,
                        help="folder that takes everything the study makes")
    parser.add_argument("--dry-run", action="store_true",
                        help="check everything that can be known, print what would be done with its cost, do nothing")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="values that win over the study file's")
    return parser.parse_intermixed_args(argv)


if __name__ == "__main__":
    sys.exit(main())
