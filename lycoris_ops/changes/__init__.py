"""Changes of a weight as values: factored forms and operators, with their algebra."""
