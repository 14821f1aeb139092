"""Text in, documents out: sources, cleaning, near-duplicates, and the splits."""
