"""Write a checkpoint file with a stack merged into it."""
