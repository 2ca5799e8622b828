"""Several projections of one input as one matrix.

Knows: which rows belong to which projection. Does not know: who reads that (optimizer, checkpoint, adapters).
"""

from __future__ import annotations

from typing import final

from torch import nn


@final
class FusedLinear(nn.Linear):
    """`nn.Linear` whose output rows are `parts[0]` rows of the first projection, then `parts[1]` of the second, ..."""

    def __init__(self, width: int, parts: tuple[int, ...], bias: bool) -> None:
        super().__init__(width, sum(parts), bias=bias)
        self.parts = parts
