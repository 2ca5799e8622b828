"""Dear packs are computed side by side, and none is lost."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qvl.train.deal import Made, deal, duration

COSTS = st.lists(st.lists(st.integers(1, 100).map(float), max_size=5), min_size=1, max_size=4)


@settings(deadline=None)
@given(COSTS)
def test_every_pack_is_computed_once_and_it_takes_no_longer(costs: list[list[float]]) -> None:
    dealt = deal(costs)
    made = [Made(lane, number) for lane, own in enumerate(costs) for number in range(len(own))]
    assert sorted(itertools.chain(*dealt)) == made
    kept = [[Made(lane, number) for number in range(len(own))] for lane, own in enumerate(costs)]
    assert duration(dealt, costs) <= duration(kept, costs)
    assert all(
        costs[a.lane][a.number] >= costs[b.lane][b.number] for packs in dealt for a, b in itertools.pairwise(packs)
    )


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(1, 100).map(float), min_size=3, max_size=3), min_size=2, max_size=4))
def test_equally_many_stay_equally_many(costs: list[list[float]]) -> None:
    assert {len(packs) for packs in deal(costs)} == {3}


def test_one_rank_with_text_and_one_with_pictures_share_both() -> None:
    costs = [[9.0, 8.0], [2.0, 1.0]]
    dealt = deal(costs)
    assert [[costs[m.lane][m.number] for m in packs] for packs in dealt] == [[9.0, 1.0], [8.0, 2.0]]
    assert duration(dealt, costs) == 11


@pytest.mark.parametrize("costs", [[[9.0, 1.0], [8.0, 2.0]], [[5.0, 5.0], [5.0, 5.0]], [[3.0], [1.0]]])
def test_packs_do_not_travel_for_nothing(costs: list[list[float]]) -> None:
    assert deal(costs) == [[Made(lane, number) for number in range(len(own))] for lane, own in enumerate(costs)]
