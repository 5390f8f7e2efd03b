"""What a layer's name in an adapter file means in a model."""
