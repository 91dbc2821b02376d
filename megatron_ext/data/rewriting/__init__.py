"""Rewriting: chunks of documents, in several styles, by an instruct model; checked, retried, and accounted for."""
