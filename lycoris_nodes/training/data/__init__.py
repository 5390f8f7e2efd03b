"""What is trained on: latents, captions, times, and the loss of them."""
