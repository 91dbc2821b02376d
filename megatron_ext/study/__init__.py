"""A study: its file, its graph of stages, and the runner that executes the graph."""
