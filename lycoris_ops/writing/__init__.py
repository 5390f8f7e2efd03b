"""Write adapters to files, in the formats that tools read."""
