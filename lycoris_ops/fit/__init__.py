"""Turn changes of weights, in any form, into layers of a chosen kind and size."""
