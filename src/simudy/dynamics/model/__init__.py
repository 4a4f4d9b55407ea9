"""Modules made pure, and fit to be differentiated twice."""

from simudy.dynamics.model.stateless import StatelessModel

__all__ = ["StatelessModel"]
