"""The files of adapters and models: lists, previews, outputs, and the facts that nodes read from them."""
