"""How much memory a process holds while blocks of many sizes come and go: glibc's allocator in small.

Knows: best fit, neighbours that grow together, the top of the heap, blocks so large that the system gives them.
Does not know: tensors, threads, the small objects that come to lie between the blocks and keep them apart.

On the CPU a training holds more than its tensors: a freed block can be used again only by what fits into it. How much
more depends on the order in which blocks come and go, so it is played through (malloc/malloc.c of glibc 2.3x; the names
of its constants are given).
"""

from __future__ import annotations

from bisect import bisect_left, insort
from typing import final

_HEADER = 16
_ALIGN = 64
"""torch asks for blocks at multiples of it; glibc then looks for that much more."""
_LEAST = 32
"""MINSIZE: what is left of a block is a block of its own from here on."""
_PAGE = 4096
_PAD = 128 << 10
"""DEFAULT_TOP_PAD: the heap grows by so much more than is needed."""
_MAPPED = 32 << 20
"""DEFAULT_MMAP_THRESHOLD_MAX: larger blocks always come from the system. Smaller ones do at first, but the threshold
grows with every such block that is freed, and has grown to this before a training's first step."""


@final
class Heap:
    """Addresses begin at 0. `held` is what the process holds now."""

    def __init__(self) -> None:
        self._top = 0
        """End of the last block in use; from here to `_end` the heap is free."""
        self._end = 0
        self._mapped = 0
        self._by_size: list[tuple[int, int]] = []
        """(size, address) of free blocks below the top, sorted."""
        self._begins: dict[int, int] = {}
        """Free blocks: address -> size."""
        self._ends: dict[int, int] = {}
        """Free blocks: end -> address."""
        self._used: dict[int, int] = {}
        """Blocks in use: address -> size."""

    @property
    def held(self) -> int:
        return self._end + self._mapped

    def take(self, size: int) -> int:
        """A block of `size` bytes; returns what `give` wants back."""
        need = -(-(size + _HEADER) // _ALIGN) * _ALIGN
        place = bisect_left(self._by_size, (need, 0))
        if place < len(self._by_size):
            found, address = self._by_size[place]
            self._forget(found, address)
            if found - need >= _LEAST:
                self._remember(found - need, address + need)
            else:
                need = found
        elif self._end - self._top < need and need >= _MAPPED:
            pages = -(-need // _PAGE) * _PAGE
            self._mapped += pages
            return -pages
        else:
            address = self._top
            self._top += need
            if self._top > self._end:
                self._end = self._top + _PAD
        self._used[address] = need
        return address

    def give(self, block: int) -> None:
        """Frees what `take` gave."""
        if block < 0:
            self._mapped += block
            return
        address, size = block, self._used.pop(block)
        if (before := self._ends.get(address)) is not None:
            grown = self._begins[before]
            self._forget(grown, before)
            address, size = before, size + grown
        if (behind := self._begins.get(address + size)) is not None:
            self._forget(behind, address + size)
            size += behind
        if address + size < self._top:
            self._remember(size, address)
            return
        self._top = address
        if self._end - self._top > 2 * _MAPPED:  # M_TRIM_THRESHOLD
            self._end = self._top + _PAD

    def _remember(self, size: int, address: int) -> None:
        insort(self._by_size, (size, address))
        self._begins[address] = size
        self._ends[address + size] = address

    def _forget(self, size: int, address: int) -> None:
        self._by_size.pop(bisect_left(self._by_size, (size, address)))
        del self._begins[address], self._ends[address + size]
