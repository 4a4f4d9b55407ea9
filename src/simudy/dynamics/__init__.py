"""Exact, memory-flat differentiation through training runs, on ``torch.func``."""
