"""Reading and writing an adapter."""
