"""Check the chain from an artifact back to the raw inputs: every hash again, every link.

    python -m tools.verify_artifact work/quickstart/report/quickstart-1a2b3c4d --raw examples/quickstart/corpus

Exit code 0: nothing differs; 1: a link is broken (each is told); 2: it could not be checked.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from megatron_ext.artifacts import Artifact
from megatron_ext.errors import exit_on_user_error
from megatron_ext.lineage import RECORDS, Places, tree, verify


@exit_on_user_error
def main(argv: list[str] | None = None) -> int:
    """Verify and print the chain."""
    arguments = _parse(argv)
    artifact = Artifact.of_manifest(arguments.artifact)
    roots = arguments.root or [_study_folder(arguments.artifact)]
    result = verify(artifact, Places(roots, arguments.raw))
    print("\n".join(tree(result.steps)))
    for raw in result.unchecked:
        print(f"not checked: raw input {raw}; name its file or folder with --raw")
    for problem in result.problems:
        print(f"BROKEN: {problem}")
    print(f"{len(result.steps)} artifacts, {result.num_files} files, {result.num_bytes:,} bytes: "
          + (f"{len(result.problems)} broken" if result.problems else "every hash fits"))
    return 1 if result.problems else 0


def _study_folder(artifact: Path) -> Path:
    """The nearest folder above that holds a study's record, else the one that the artifact lies in."""
    parents = artifact.resolve().parents
    return next((folder for folder in parents if any(folder.glob(RECORDS))), parents[0])


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path, help="folder of the artifact, e.g. a report")
    parser.add_argument("--root", type=Path, action="append",
                        help="folder searched for artifacts (repeatable; default: the study's folder)")
    parser.add_argument("--raw", type=Path, action="append", default=[],
                        help="raw file or folder, such as the corpus (repeatable)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
