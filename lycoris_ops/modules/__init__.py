"""Which parts of a model can be adapted, and how they are chosen by name."""
