"""Find the size and kind of each adapted layer: probes, sizes and plans."""
