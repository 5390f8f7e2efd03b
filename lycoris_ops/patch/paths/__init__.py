"""The ways of applying a plan, one module each, which defines PATH."""
