"""A file as memory: its pages are those of the system's cache, and a page that is written becomes this process's own.

Knows: mapping, tensors over a mapping, giving pages back. Does not know: what lies where in a file.
"""

from __future__ import annotations

import mmap
from math import prod
from pathlib import Path
from typing import final

import torch
from torch import Tensor


@final
class MappedFile:
    """Mapped as long as this object or a tensor over it lives. The file may be replaced meanwhile, as everything here
    that saves does, but must not be written into or cut short."""

    def __init__(self, file: Path) -> None:
        with file.open("rb") as opened:
            self._pages = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_COPY)

    def tensor(self, offset: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor | None:
        """The values from byte `offset` on; None where no tensor can begin."""
        if offset % dtype.itemsize:
            return None
        return torch.frombuffer(self._pages, dtype=dtype, count=prod(shape), offset=offset).view(shape)

    def let_go(self, offset: int, size: int) -> None:
        """Gives back the pages that lie in these bytes: they do not count as this process's memory until they are read
        again. What was written into them is lost."""
        begin, end = -(-offset // mmap.PAGESIZE) * mmap.PAGESIZE, (offset + size) // mmap.PAGESIZE * mmap.PAGESIZE
        if begin < end and hasattr(mmap, "MADV_DONTNEED"):
            self._pages.madvise(mmap.MADV_DONTNEED, begin, end - begin)
