"""Show what the adapters of a stack do to a model, in numbers, words and pictures."""
