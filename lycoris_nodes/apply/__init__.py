"""Apply a stack to a model: merge it into the weights, or compute it beside the layers."""
