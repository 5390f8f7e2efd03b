"""Block rules, a language that weights the blocks and layers of a model, and its presets."""
