"""The forms that stacks are made from and turned into: rows, LORA_STACK, presets, curves."""
