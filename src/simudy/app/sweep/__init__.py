"""Sweeps: jobs that failed, jobs that are done, and the table over them."""
