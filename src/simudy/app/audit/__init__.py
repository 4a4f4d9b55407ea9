"""What stands beside the pictures: verdicts on each image, and on the attack."""
