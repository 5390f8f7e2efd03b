"""Training data and loss: latents, captions, times."""
