"""Rules of other libraries, and the same rules computed by them."""
