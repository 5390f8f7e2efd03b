"""Rows, LORA_STACK, presets and curves: what stacks are made of and made into."""
