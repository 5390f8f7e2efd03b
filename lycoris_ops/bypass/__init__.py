"""Adapters computed beside a module, in each of its passes, while its weight stays as it is."""
