"""Packs prepared in the background while the model trains.

Knows: one worker process runs `packs`, its output is identical to running it in place.
Does not know: what is in a pack.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch.utils.data import DataLoader, IterableDataset

from qvl.data.packing import Pack


class _Packs(IterableDataset[Pack]):
    def __init__(self, make: Callable[[], Iterator[Pack]]) -> None:
        self._make = make

    def __iter__(self) -> Iterator[Pack]:
        # The worker must not take the cores that the model computes on.
        torch.set_num_threads(1)
        return self._make()


def background(make: Callable[[], Iterator[Pack]], prefetch: int = 8) -> Iterator[Pack]:
    """Runs `make()` in a worker process and yields what it yields, up to `prefetch` packs ahead."""
    return iter(DataLoader(_Packs(make), batch_size=None, num_workers=1, prefetch_factor=prefetch))
