"""The ways of applying a plan: one module for each, which defines PATH."""
