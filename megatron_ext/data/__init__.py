"""Documents, selection, rewriting, tokenization: the data stages. Nothing here imports megatron.core."""
