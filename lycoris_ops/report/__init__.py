"""Reports in words: what a file holds, what was applied, and what was written."""
