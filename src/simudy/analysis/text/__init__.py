"""Texts: how much of one was read, and how that is shown."""
