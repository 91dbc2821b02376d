"""The native SentencePiece BPE encoder: its source and its build step; `data/native_encoder.py` is its Python side."""
