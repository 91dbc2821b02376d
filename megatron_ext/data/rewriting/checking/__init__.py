"""Checking: a rewrite beside its source, measured and judged. Language by language; nothing here knows an engine."""
