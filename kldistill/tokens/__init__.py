"""The extended tokenizer: which tokens are new, what they replace, and the check before any training."""
