"""The meaning of an adapter file's keys: which tool wrote them, and which layers of a model they name."""
