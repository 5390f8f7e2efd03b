"""Reading adapters from files, layer by layer."""
