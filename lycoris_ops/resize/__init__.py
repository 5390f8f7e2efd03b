"""An adapter becomes one of another kind or size."""
