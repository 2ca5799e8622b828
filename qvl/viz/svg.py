"""Small pieces of SVG and HTML text: escaping, numbers, axis ticks.

Knows: markup. Does not know: what is drawn. Everything that comes from outside goes through `escape`.
"""

from __future__ import annotations

import html
import math
import unicodedata
from collections.abc import Sequence

_INVISIBLE = {"Cc", "Cf", "Cs", "Co", "Cn"}
_KEPT = "\n\t\u200d\ufe0f"
"""Control and format characters that do no harm: line breaks, and what joins emoji."""


def escape(value: object) -> str:
    """Text for HTML or SVG, in an element or a quoted attribute.

    Besides the markup characters, control and direction-changing characters become U+FFFD: a model's words must not
    reorder or hide the page's own.
    """
    text = "".join(c if c in _KEPT or unicodedata.category(c) not in _INVISIBLE else "\ufffd" for c in str(value))
    return html.escape(text, quote=True)


def number(value: float) -> str:
    """A coordinate: at most two decimals, no trailing zeros."""
    return f"{value:.2f}".rstrip("0").rstrip(".")


def linear_ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round values (1, 2, 5 times a power of ten) inside [low, high]: (0, 10) -> [0, 2, 4, 6, 8, 10]."""
    if high <= low:
        return [low]
    rough = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [i * step for i in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2, 5 times powers of ten inside [low, high], both > 0: (0.3, 6) -> [0.5, 1, 2, 5]."""
    found = [
        m * 10.0**e
        for e in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        for m in (1, 2, 5)
        if low <= m * 10.0**e <= high
    ]
    return found or [low, high]


def polyline(points: Sequence[tuple[float, float]]) -> str:
    """Path data "M x y L x y ..." of (x, y) points."""
    return "M" + " L".join(f"{number(x)} {number(y)}" for x, y in points)
