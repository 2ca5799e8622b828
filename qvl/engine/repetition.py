"""Whether a reply goes round in circles.

Knows: token ids. Does not know: text, why a model does that.

Endless repetition is what small and quantised models do on tables and long texts; a repetition penalty against it
ruins tables. So nothing is penalised here: only a reply that has said the same thing over and over is ended.
"""

from __future__ import annotations

from collections.abc import Sequence

MAX_PERIOD = 64
"""Longest circle that is found, in tokens."""
MIN_TURNS = 8
"""A circle is one after so many turns ..."""
MIN_TOKENS = 128
"""... and so many tokens: eight equal cells in a row of a table are none."""


def goes_in_circles(ids: Sequence[int]) -> bool:
    """The end of `ids` is one and the same piece of 1 to 64 tokens, at least 8 times and for at least 128 tokens."""
    if len(ids) < MIN_TOKENS:
        return False
    for period in range(1, min(MAX_PERIOD, len(ids) // MIN_TURNS) + 1):
        tail = ids[-max(MIN_TOKENS, MIN_TURNS * period) :]
        if tail[period:] == tail[:-period]:
            return True
    return False
