"""What a change of a weight is, as values: factored forms and operators, with their algebra."""
