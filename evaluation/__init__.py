"""PoETa V2, NPM, comparison of conditions, report."""
