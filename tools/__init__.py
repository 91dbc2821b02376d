"""Programs of the study, one a stage: `python -m tools.<name> --help`."""
