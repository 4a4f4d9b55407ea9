"""How good a reconstruction is, and how it looks. The secret is seen here and nowhere else.

Import from the modules: `score` alone needs no matplotlib.
"""
