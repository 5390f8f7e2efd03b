"""Adapters with strengths and block rules, and which of their layers meet which weights of a model."""
