"""Turn the difference of two models into an adapter."""
