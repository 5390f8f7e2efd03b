"""What was read, applied and written, in words."""
