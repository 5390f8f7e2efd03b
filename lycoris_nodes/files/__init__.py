"""The files of adapters and models: lists, previews, outputs, and what nodes read of them."""
