"""What the displacement of a first, linear layer says about the images."""
