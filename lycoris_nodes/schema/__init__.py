"""What nodes are made of: inputs, their checks, and reports."""
