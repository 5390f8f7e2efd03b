"""How the layers of one form are fused: one module for each form, which defines FORM and `fuse`."""
