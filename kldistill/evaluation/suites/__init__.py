"""Suites of tasks that a model is evaluated on by what it writes or prefers: a file a suite, and a YAML beside it."""
