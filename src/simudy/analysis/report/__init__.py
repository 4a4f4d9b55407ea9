"""The report of a run, for a person who decides: what it says, and how it looks."""
