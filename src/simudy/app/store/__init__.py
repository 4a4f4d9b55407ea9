"""What lies in a run's directory: who writes it, who reads it back and checks it."""
