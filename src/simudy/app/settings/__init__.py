"""Settings: their schema, their check, and the objects made of them."""
