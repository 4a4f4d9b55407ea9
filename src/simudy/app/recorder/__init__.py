"""Evidence written by the training script itself, and its run replayed."""
