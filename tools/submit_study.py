"""Submit studies to Slurm: python -m tools.submit_study STUDY.yaml … --work DIR [--dry-run | --status] [key=value …]

Work that studies share is done once. Submitting again submits what is neither finished nor in the queue. `--dry-run`
prints the jobs with their cost; `--status` what is done, running, waiting or failed, and why.
"""

from __future__ import annotations

import argparse
import sys

from megatron_ext.errors import exit_on_user_error
from megatron_ext.settings import folder_argument, path_argument
from megatron_ext.study.checks import NOTHING_SUBMITTED, check_places, check_studies
from megatron_ext.study.jobs import plan_jobs
from megatron_ext.study.overview import describe_plan, describe_states
from megatron_ext.study.plan import examine, load_studies
from megatron_ext.study.site import read_site
from megatron_ext.study.status import job_states, read_queue
from megatron_ext.study.submission import fetch_models, keep_studies, one_submission, site_file, submit_jobs


@exit_on_user_error
def main(argv: list[str] | None = None) -> int:
    """Plan the jobs, then tell about them or submit them; exit code 1: `--status` found a failed job."""
    arguments = _parse(argv)
    work, site = arguments.work.resolve(), read_site(site_file())
    studies = load_studies(arguments.studies, arguments.overrides)
    jobs = plan_jobs(studies, work, site)
    if arguments.dry_run:
        findings = examine(studies, work)
        findings.refuse(NOTHING_SUBMITTED)
        print("\n".join(describe_plan(studies, jobs, job_states(jobs, work, {}), findings, work)))
        return 0
    if arguments.status:
        states = job_states(jobs, work, read_queue(work))
        print("\n".join(describe_states(studies, jobs, states)))
        return 1 if any(state.state == "failed" for state in states.values()) else 0
    check_places(studies, work, site)
    work.mkdir(parents=True, exist_ok=True)
    with one_submission(work):
        fetch_models(studies, work)
        check_studies(studies, work)
        keep_studies(studies, jobs, work)
        submitted = submit_jobs(jobs, job_states(jobs, work, read_queue(work)), work, site)
    for one in submitted:
        print(f"{one.job_id}  {one.job.name}" + (f" (parts {', '.join(map(str, one.parts))})" if one.parts else ""))
    print(f"{len(submitted)} jobs submitted" if submitted else "nothing to submit")
    return 0


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", nargs="+", metavar="STUDY.yaml",
                        help="study files; after them `key=value` wins over what they say")
    parser.add_argument("--work", type=folder_argument, required=True,
                        help="folder, shared by all nodes, that takes everything the studies make")
    modes = parser.add_mutually_exclusive_group()
    modes.add_argument("--dry-run", action="store_true", help="print the jobs with GPU-hours and disk, submit nothing")
    modes.add_argument("--status", action="store_true", help="print how far each job is, submit nothing")
    arguments = parser.parse_intermixed_args(argv)
    words = arguments.studies
    arguments.overrides = [word for word in words if "=" in word]
    arguments.studies = [path_argument(word) for word in words if "=" not in word]
    if not arguments.studies:
        parser.error("name a study file")
    return arguments


if __name__ == "__main__":
    sys.exit(main())
