"""Images that the settings name: public ones, and those that a search begins at."""
