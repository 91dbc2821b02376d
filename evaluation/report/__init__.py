"""Stage 8: one self-contained HTML page that tells what a study found, how sure that is, and where it comes from.

    python -m evaluation.report --output work/report study=work/study.json

`record` reads the study's artifacts, `results`, `data` and `custody` turn them into the numbers of the page (they are
also written to report.json), `scales` and `plots` draw, `page` puts it all into the template.
"""
