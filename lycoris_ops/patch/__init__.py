"""The patch ops: which layers are fused with which, and the ways of adding them to a weight."""
