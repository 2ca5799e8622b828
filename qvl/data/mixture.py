"""Two sources as one: a fixed share of samples comes from the second.

Knows: which of the two a sample comes from. Does not know: what they hold.
"""

from __future__ import annotations

from fractions import Fraction
from typing import final

from qvl.data.packing import SampleSource
from qvl.data.records import Sample

_MOST_PARTS = 1000
"""Shares are taken to the nearest fraction with at most so large a denominator."""


@final
class Mixture:
    """`mixture[index]`: evenly mixed, and a pure function of the index, as the two sources are.

    A share of 1/4 takes samples 3, 7, 11, ... from the second source, its samples 0, 1, 2, ...; the others are samples
    0, 1, 2, ... of the first.
    """

    def __init__(self, first: SampleSource, second: SampleSource, share: float) -> None:
        """
        Args:
            share: of the second source, between 0 and 1.
        """
        assert 0 <= share <= 1, f"a share is between 0 and 1, got {share}"
        self._first, self._second = first, second
        self._share = Fraction(share).limit_denominator(_MOST_PARTS)
        self.tasks = tuple(dict.fromkeys((*first.tasks, *second.tasks)))

    def __getitem__(self, index: int) -> Sample:
        before, after = (n * self._share.numerator // self._share.denominator for n in (index, index + 1))
        return self._second[before] if after > before else self._first[index - before]
