"""How large each adapted layer is and of which kind: probes, sizes and plans."""
