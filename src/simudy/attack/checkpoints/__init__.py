"""What a person's checkpoints hold, and what they prove of the run between them."""
