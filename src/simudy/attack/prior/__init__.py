"""What an image looks like before any evidence."""

from simudy.attack.prior.terms import (
    Term,
    colour_variation,
    outside_box,
    pixel_range,
    prior,
    require_colours,
    total_variation,
)

__all__ = [
    "Term",
    "colour_variation",
    "outside_box",
    "pixel_range",
    "prior",
    "require_colours",
    "total_variation",
]
