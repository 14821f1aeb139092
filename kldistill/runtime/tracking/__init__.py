"""Figures and tables on their way to metrics.jsonl, wandb or Trackio."""
