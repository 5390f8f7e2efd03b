"""Write adapters to files, in the dialects that tools read."""
