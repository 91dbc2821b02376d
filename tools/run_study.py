"""Run a study on this machine: python -m tools.run_study STUDY.yaml --work DIR [key=value …]

Stages that are finished are not run again; an interrupted one goes on where it stopped.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from megatron_ext.errors import exit_on_user_error
from megatron_ext.progress import format_seconds
from megatron_ext.study.config import load_study
from megatron_ext.study.graph import Node, build_graph
from megatron_ext.study.report_input import write_study_record
from megatron_ext.study.runner import run_nodes, run_report, stage_seconds


@exit_on_user_error
def main(argv: list[str] | None = None) -> int:
    """Run the study, make its report, and tell where things are."""
    arguments = _parse(argv)
    started = time.monotonic()
    study = load_study(arguments.study, arguments.overrides)
    nodes = build_graph(study)
    outcome = run_nodes(nodes, arguments.work)
    report = None
    if any(node.kind == "comparison" for node in outcome.nodes):
        report = run_report(write_study_record(study, nodes, arguments.work), arguments.work)
    if outcome.failures and report:
        print(f"\nreport of what is there: {report / 'report.html'}", flush=True)
    outcome.require_all()
    assert report is not None
    num_run = outcome.num_run
    duration = format_seconds(time.monotonic() - started)
    print(f"\nstudy {study.name}: " + (f"{num_run} stages ran in {duration}" if num_run
                                       else "nothing to do, everything is up to date"))
    _print_places(nodes, report, arguments.work)
    return 0


def _print_places(nodes: list[Node], report: Path, work: Path) -> None:
    seconds = stage_seconds(nodes, work)
    print("seconds of each stage, over all launches:")
    for stage, value in seconds.items():
        print(f"  {stage:40s} {value:8.1f}")
    print(f"report:      {report / 'report.html'}   (open it in a browser: verdict, losses, blend, chain of hashes)\n"
          f"runs:        {work / 'run'}/*/seed*/   metrics.jsonl, exposure.json, checkpoints/\n"
          f"models:      {work / 'export'}/*/seed*/   Hugging Face folders, for AutoModelForCausalLM\n"
          f"evaluations: {work / 'evaluate'}/*/   results.json, examples.jsonl\n"
          f"logs:        {work / 'logs'}/")


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, help="study file")
    parser.add_argument("--work", type=Path, required=True, help="folder that takes everything the study makes")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="values that win over the study file's")
    return parser.parse_intermixed_args(argv)


if __name__ == "__main__":
    sys.exit(main())
