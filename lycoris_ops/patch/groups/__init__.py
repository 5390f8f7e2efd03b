"""What is fused with what: a module for each form of a change, which defines FORM and `fuse`."""
