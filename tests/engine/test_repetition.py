from __future__ import annotations

import random

import pytest

from qvl.engine.repetition import MIN_TOKENS, goes_in_circles

RNG = random.Random(0)


@pytest.mark.parametrize("period", [1, 2, 7, 16, 31, 64])
def test_circles_are_found_as_soon_as_they_are_long_enough(period):
    piece = [RNG.randrange(1000) for _ in range(period)]
    ids = [RNG.randrange(1000) for _ in range(50)]
    turns = max(8, -(-MIN_TOKENS // period))
    assert goes_in_circles(ids + piece * turns)
    long_enough = max(MIN_TOKENS, 8 * period)
    assert goes_in_circles((piece * turns)[-long_enough:])
    assert not goes_in_circles([*ids, -1, *(piece * turns)[1 - long_enough :]])


def test_tables_lists_and_counting_are_none():
    row = [5, 6, 7, 8]
    table = [t for i in range(60) for t in (*row, 100 + i)]
    cells = [1, 2] * 40  # eighty equal tokens, then something else
    counting = list(range(500))
    assert not any(map(goes_in_circles, (table, cells, [*cells, 9], counting, [])))
