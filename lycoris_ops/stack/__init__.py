"""Adapters with their strengths and rules, and what becomes of each on a model."""
