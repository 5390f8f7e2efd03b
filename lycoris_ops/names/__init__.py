"""What a key of an adapter file means: which tool wrote it, and which layer of a model it names."""
