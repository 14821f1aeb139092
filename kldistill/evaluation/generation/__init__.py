"""Greedy and sampled text from any model of a run, in batches."""
