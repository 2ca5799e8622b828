"""Memory for what layers compute on the way.

Knows: how large memory is asked for, how it is used again. Does not know: what lies in it.

Fresh memory is dear: the system clears each page when it is first written. A large picture's widest rows are 40 MB in
each of 32 blocks, more than the C library keeps for itself.
"""

from __future__ import annotations

import threading
from math import prod
from typing import final

import torch
from torch import Tensor

from qvl.runtime import ask_for_huge_pages

_LARGE = 4 << 20
"""Bytes from which fresh memory is asked for in huge pages: page by page it costs up to a fifth of a product."""


def empty(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Fresh memory on the CPU, in huge pages if it is large."""
    made = torch.empty(shape, dtype=dtype)
    if made.nbytes >= _LARGE:
        ask_for_huge_pages(made.data_ptr(), made.nbytes)
    return made


@final
class Workspace(threading.local):
    """Memory by use, in bfloat16: one piece for each, as large as the largest that was asked for. Every thread has its
    own, so a model can answer in several."""

    def __init__(self) -> None:
        self._held: dict[str, Tensor] = {}
        self._views: dict[str, Tensor] = {}
        """Of each use, what was given last: from token to token the shapes are the same."""

    def __reduce__(self) -> tuple[type[Workspace], tuple[()]]:
        return Workspace, ()  # a copied model gets a workspace of its own

    def take(self, use: str, *shape: int) -> Tensor:
        """Memory that whoever took it for the same `use` before is done with."""
        view = self._views.get(use)
        if view is not None and view.shape == shape:
            return view
        size, held = prod(shape), self._held.get(use)
        if held is None or held.numel() < size:
            view = held = None  # with the next two lines the smaller piece goes before there is a larger one
            self._views.pop(use, None)
            self._held.pop(use, None)
            held = self._held[use] = empty(size)
        view = self._views[use] = held[:size].view(shape)
        return view
