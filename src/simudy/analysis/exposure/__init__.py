"""How much of each training image the published weights determine, whatever the attack."""
