"""Engines: what turns prompts into completions. One small interface, whatever runs the model."""
