"""Which rank computes which pack of a step.

Knows: what packs cost, that dear ones should be computed side by side. Does not know: models, how packs travel.

Ranks make packs of their own samples, and these differ: one has text alone, the next has pictures. In a step of several
packs per rank they are dealt anew. The loss of a step is a sum over all its packs, so it stays the same, and so does
what a resumed run goes on with: where samples were taken, not where they were computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from qvl.batch import IGNORE, Batch
from qvl.data.packing import Pack

_WORTH_IT = 0.95
"""Packs travel if the step then takes at most this part of the time."""


@dataclass(frozen=True, order=True)
class Made:
    """A pack by who made it: the `number`-th of lane `lane`."""

    lane: int
    number: int


def deal(costs: Sequence[Sequence[float]]) -> list[list[Made]]:
    """What every lane computes, in order.

    Lanes compute pack after pack side by side and wait for each other (weights are gathered block by block). So packs
    are sorted by cost and dealt in rounds, and in a round the dearest goes to the lane that has had least so far.
    Where that gains next to nothing every lane keeps its own, likewise sorted.

    Example: costs ((9, 1), (8, 2)) are kept; of ((9, 8), (2, 1)) each lane gets one of the first two.

    Args:
        costs: of the packs that each lane has made.
    """
    lanes = len(costs)
    own = [
        sorted((Made(l, i) for i in range(len(c))), key=lambda m: -costs[m.lane][m.number]) for l, c in enumerate(costs)
    ]
    every = sorted((m for made in own for m in made), key=lambda m: (-costs[m.lane][m.number], m.number, m.lane))
    loads = [0.0] * lanes
    dealt: list[list[Made]] = [[] for _ in costs]
    for start in range(0, len(every), lanes):
        least_first = sorted(range(lanes), key=lambda lane: (loads[lane], lane))
        for pack, lane in zip(every[start : start + lanes], least_first, strict=False):
            dealt[lane].append(pack)
            loads[lane] += costs[pack.lane][pack.number]
    return dealt if duration(dealt, costs) <= _WORTH_IT * duration(own, costs) else own


def duration(dealt: Sequence[Sequence[Made]], costs: Sequence[Sequence[float]]) -> float:
    """Cost of the dearest pack of every round, summed."""
    per_lane = [[costs[m.lane][m.number] for m in packs] for packs in dealt]
    rounds = max(map(len, per_lane), default=0)
    return sum(max(c[i] for c in per_lane if i < len(c)) for i in range(rounds))


def idle(like: Pack) -> Pack:
    """A pack with nothing to learn and nothing to see, for a lane that has none left: its ranks take part all the
    same."""
    batch = like.batch
    nothing = Batch(
        tokens_T=batch.tokens_T[:1],
        positions_RT=batch.positions_RT[:, :1],
        seq_lens=(1,),
        patches_PC=batch.patches_PC[:0],
        patch_hw_2P=batch.patch_hw_2P[:, :0],
        segment_lens=(),
        grids=(),
        vision_rows_M=batch.vision_rows_M[:0],
        labels_T=torch.full_like(batch.tokens_T[:1], IGNORE),
    )
    return replace(like, batch=nothing, task_X=like.task_X[:0], samples=0)
