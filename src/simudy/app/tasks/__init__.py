"""What `task` names, one file each, and what stands beside them while they run."""
