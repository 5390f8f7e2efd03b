"""Turn an adapter into one of another kind or size."""
