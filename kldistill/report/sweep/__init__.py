"""The table and page of many runs."""
