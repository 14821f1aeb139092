"""What came of it: held-out text scored, tasks answered and judged, with intervals."""
