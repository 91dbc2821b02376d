"""The native SentencePiece BPE encoder: its source, its build step and its Python side (`encoder`)."""
