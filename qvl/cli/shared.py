"""Answering requests on all ranks: the first asks and judges, the others only answer their share.

Knows: how requests are dealt and replies put back in order. Does not know: models, tasks, judging.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import final

from qvl.engine.api import Generator, Reply, Request
from qvl.train.ranks import Ranks


@final
class SharedGenerator:
    """A `Generator` over the generators of all ranks, each with the same model."""

    def __init__(self, own: Generator, ranks: Ranks) -> None:
        self._own = own
        self._ranks = ranks

    def generate(self, requests: Sequence[Request]) -> list[Reply]:
        """One reply per request, in order. On the first rank only; the others `serve`."""
        return self._deal(self._ranks.from_first(list(requests)))

    def serve(self) -> None:
        """Answers until the first rank closes."""
        while True:
            requests: list[Request] | None = self._ranks.from_first(None)
            if requests is None:
                return
            self._deal(requests)

    def close(self) -> None:
        """Lets the other ranks go on."""
        self._ranks.from_first(None)

    def _deal(self, requests: list[Request]) -> list[Reply]:
        place = self._ranks.place
        by_rank = self._ranks.gather(self._own.generate(requests[place.rank :: place.size]))
        return [by_rank[i % place.size][i // place.size] for i in range(len(requests))]


def measure_together(own: Generator, ranks: Ranks, measure: Callable[[Generator], object]) -> None:
    """Calls `measure` on the first rank, with a generator that has all ranks answer."""
    shared = SharedGenerator(own, ranks)
    if ranks.first:
        measure(shared)
        shared.close()
    else:
        shared.serve()
