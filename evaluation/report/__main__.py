"""Make a study's page: python -m evaluation.report --output DIR study=<study.json>."""

from __future__ import annotations

import sys

from evaluation.report.page import ReportSettings, write_report
from evaluation.report.record import StudyRecord
from megatron_ext.errors import exit_on_user_error
from megatron_ext.settings import parse_stage_arguments


def _describe(settings: ReportSettings) -> list[str]:
    return [f"study: {StudyRecord.read(settings.study).values['name']}"]


@exit_on_user_error
def main() -> None:
    """Parse the command line, make the page, say where it is."""
    settings, output = parse_stage_arguments(ReportSettings, __doc__ or "", preview=_describe)
    artifact = write_report(settings, output)
    print(f"{artifact.path / 'report.html'}: {artifact.counts['bytes']:,} bytes, "
          f"from {len(artifact.manifest['request']['inputs'])} inputs")


if __name__ == "__main__":
    sys.exit(main())
