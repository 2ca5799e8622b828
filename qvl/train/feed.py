"""Packs for one rank, and where the stream of samples stands over all ranks.

Knows: lanes (rank r of R takes every R-th sample), which part of a step one pack is, what a resumed run goes on with.
Does not know: how ranks talk, what is in a pack, the model.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import final

from qvl.data.loader import background
from qvl.data.packing import Pack, PackLimits, SampleSource, packs
from qvl.inputs.processor import Processor
from qvl.train.config import StageConfig


@dataclass(frozen=True)
class Lane:
    """Where one rank's samples stand: those from `next_index` on (every R-th) and `waiting` are still to come."""

    next_index: int
    waiting: tuple[int, ...] = ()


def begin(lanes: int) -> list[Lane]:
    """Nothing taken yet."""
    return [Lane(r) for r in range(lanes)]


def redeal(saved: Sequence[Lane], lanes: int) -> list[Lane]:
    """The same samples to come, dealt to another number of lanes in turn; the same number goes on exactly.

    Example: 2 lanes at 6 and 9, so 0, 2, 4 and 1, 3, 5, 7 are done. To come are 6 and 8, then 9, 10, ... Dealt to 3
    lanes: (6, then 10, 13, ...), (8, then 11, ...), (9, 12, ...): each round is the next three.
    """
    if len(saved) == lanes:
        return list(saved)
    frontier = max(lane.next_index for lane in saved)
    skipped = [i for lane in saved for i in range(lane.next_index, frontier, len(saved))]
    open_ones = sorted([*skipped, *(i for lane in saved for i in lane.waiting)])
    return [Lane(frontier + (r - len(open_ones)) % lanes, tuple(open_ones[r::lanes])) for r in range(lanes)]


@dataclass(frozen=True)
class Share:
    """How a step of `accumulate` whole packs is dealt to ranks: each takes `packs` packs of `part` the size."""

    packs: int
    part: float

    @classmethod
    def of(cls, accumulate: int, lanes: int, divisible: bool) -> Share:
        """A step holds the same number of tokens on any number of ranks.

        Args:
            divisible: False = packs stay whole (their items need each other), so more ranks make larger steps.
        """
        count = math.ceil(accumulate / lanes)
        return cls(count, accumulate / (lanes * count) if divisible else 1.0)


@final
class Feed:
    """The packs of one rank, prepared in the background. `lane` says where the samples not yet taken begin."""

    def __init__(
        self, source: SampleSource, processor: Processor, stage: StageConfig, lane: Lane, lanes: int, share: Share
    ) -> None:
        self.lane = lane
        self._count = share.packs
        most = stage.samples_per_pack, stage.tokens_per_sample
        limits = PackLimits(stage.tokens_per_pack, stage.patches_per_pack, stage.same_task, *most, part=share.part)
        make = partial(packs, source, processor, limits, stage.chat_format, lane.next_index, lanes, lane.waiting)
        self._stream: Iterator[Pack] | None = background(make)

    def step(self) -> list[Pack]:
        """The packs of one step."""
        assert self._stream is not None, "the feed was closed"
        held = [next(self._stream) for _ in range(self._count)]
        self.lane = Lane(held[-1].next_index, held[-1].waiting)
        return held

    def close(self) -> None:
        """Ends the background process."""
        self._stream = None
