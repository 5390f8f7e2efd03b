"""Changes of weights in any form become layers of a chosen kind and size."""
