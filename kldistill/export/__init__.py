"""A plain Hugging Face folder of the extended model."""
