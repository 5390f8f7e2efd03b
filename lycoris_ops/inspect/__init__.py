"""What the adapters of a stack do to a model, as numbers, words and pictures."""
