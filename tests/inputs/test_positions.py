"""Rope positions against the worked example of the paper's rule and against a token-by-token twin."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from qvl.inputs.positions import Run, TextRun, VisionRun, linear_positions, mrope_positions

grids = st.tuples(st.integers(1, 4), st.integers(1, 6), st.integers(1, 6))
runs = st.lists(st.one_of(st.integers(0, 7).map(TextRun), grids.map(VisionRun)), max_size=6)


def one_by_one(items: list[Run]) -> tuple[list[list[int]], int]:
    rows: list[list[int]] = []
    for run in items:
        start = 1 + max((max(r) for r in rows), default=-1)
        if isinstance(run, TextRun):
            rows += [[start + i] * 3 for i in range(run.length)]
        else:
            t, h, w = run.grid
            rows += [[start + a, start + b, start + c] for a in range(t) for b in range(h) for c in range(w)]
    return rows, 1 + max((max(r) for r in rows), default=-1)


def test_worked_example() -> None:
    positions, following = mrope_positions([TextRun(5), VisionRun((1, 2, 2)), TextRun(2)])
    assert positions.tolist() == [
        [0, 1, 2, 3, 4, 5, 5, 5, 5, 7, 8],
        [0, 1, 2, 3, 4, 5, 5, 6, 6, 7, 8],
        [0, 1, 2, 3, 4, 5, 6, 5, 6, 7, 8],
    ]
    assert following == 9


@settings(deadline=None)
@given(runs)
def test_equals_counting_one_by_one(items: list[Run]) -> None:
    positions, following = mrope_positions(items)
    expected, expected_following = one_by_one(items)
    assert positions.T.tolist() == expected
    assert following == expected_following


@settings(deadline=None)
@given(runs)
def test_one_axis_just_counts(items: list[Run]) -> None:
    total = sum(r.length if isinstance(r, TextRun) else math.prod(r.grid) for r in items)
    positions, following = linear_positions(items)
    assert np.array_equal(positions, np.arange(total)[None])
    assert following == total
