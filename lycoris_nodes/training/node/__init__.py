"""What Train LoRA / LyCORIS does: its inputs, what they mean for the model at hand, and the training."""
