"""Numbers of a recipe that are out of their range, said before anything is built.

Knows: ranges. Does not know: what the numbers are for.
"""

from __future__ import annotations

import math

ANY = math.inf
"""No upper bound; the number itself must be finite all the same."""


def check_bounds(config: object, where: str, /, **bounds: tuple[float, float]) -> None:
    """Raises `ValueError` for the first field that is not between its two bounds (both included) or not a number."""
    for name, (low, high) in bounds.items():
        value = vars(config)[name]
        if not (low <= value <= high and math.isfinite(value)):
            meant = f"at least {low:g}" if high == ANY else f"from {low:g} to {high:g}"
            raise ValueError(f"{where}{name} is {value}; it must be a number {meant}")
