"""Training: a network of adapter layers beside a frozen model, and the loop that trains it."""
