"""Tool calls: read from text, graded against the right one, and chosen to learn from."""
