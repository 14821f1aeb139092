"""The original model: fetched, described, and read again."""
