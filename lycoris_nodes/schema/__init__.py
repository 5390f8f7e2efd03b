"""The parts that nodes share: inputs, their checks, and reports."""
