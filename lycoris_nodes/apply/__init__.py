"""A stack on a model: merged into its weights, or beside its layers."""
