"""The difference of two models becomes an adapter."""
