"""Parts of a file, straight into the memory of a tensor.

Knows: how to read fast: in pieces, by several threads, past every mapping. Does not know: what is read.
"""

from __future__ import annotations

import functools
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from qvl.runtime import usable_cores

_PIECE = 8 << 20
_MOST_THREADS = 4


def read_at(file: Path, offset: int, into: Tensor) -> None:
    """Fills `into`, contiguous memory of the CPU, with the bytes of `file` from `offset` on.

    Raises:
        ValueError: the file ends before.
    """
    memory = memoryview(into.detach().view(-1).view(torch.uint8).numpy())  # pyrefly: ignore  # arrays are buffers
    handle = os.open(file, os.O_RDONLY)
    try:

        def piece(begin: int) -> None:
            end = min(begin + _PIECE, len(memory))
            while begin < end:
                got = os.preadv(handle, [memory[begin:end]], offset + begin)
                if not got:
                    raise ValueError(f"{file} is cut off: it ends {len(memory) - begin} bytes early; copy it again")
                begin += got

        begins = range(0, len(memory), _PIECE)
        if len(begins) > 1:
            list(_readers().map(piece, begins))
        else:
            for begin in begins:
                piece(begin)
    finally:
        os.close(handle)


@functools.cache
def _readers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(min(usable_cores(), _MOST_THREADS), "read")
