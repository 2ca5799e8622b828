"""The page store and the attention contexts of bfloat16 models, by the kernels.

Knows: where keys and values lie inside a page (cells of 16 keys, see attention.cpp), which calls a pass needs.
Does not know: requests, whose pages are whose; how it is done in plain torch is `qvl.engine.paged`, the twin.

All rows of a pass, whether they begin, go on or decode, are attended by one call that reads pages where they are:
nothing of the past is copied, and a row's result is the same in any company and in pieces of any length.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import numpy as np
import torch
from torch import Tensor

from qvl.batch import Batch
from qvl.engine.native import ops
from qvl.engine.native.build import library
from qvl.engine.native.workspace import Workspace
from qvl.engine.paged import PagedStore, Row
from qvl.layers.attention import AttnContext, PackedContext, SegmentPlan, Span
from qvl.layers.decoder import DecoderConfig

_MOST_HEAD = 256
"""Largest head the kernels have room for."""


def can_attend(head_size: int, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether the kernels attend such heads on this machine."""
    fits = head_size % 16 == 0 and head_size <= _MOST_HEAD
    return fits and dtype == torch.bfloat16 and device.type == "cpu" and library() is not None


def seeing_context(batch: Batch) -> AttnContext:
    """What a batch of pictures without text is seen with."""
    here = batch.tokens_T.device.type == "cpu" and library() is not None
    return CellVision(batch) if here else PackedContext(batch)


@final
class CellStore:
    """As `PagedStore`, with the same memory per page and another order inside it."""

    def __init__(self, config: DecoderConfig, pages: int, page_tokens: int, dtype: torch.dtype, device: torch.device):
        self._plain = PagedStore(config, pages, page_tokens, dtype, device)
        self.dtype, self.device = dtype, device
        self.pages, self.page_tokens = pages, page_tokens

    @staticmethod
    def fits(config: DecoderConfig, page_tokens: int, dtype: torch.dtype, device: torch.device) -> bool:
        return page_tokens % ops.CELL == 0 and can_attend(config.head_size, dtype, device)

    def layer(self, layer: int) -> Tensor:
        """[2 K, pages, page * H]: key heads, then value heads."""
        return self._plain.layer(layer)

    def context(self, batch: Batch, rows: Sequence[Row]) -> CellContext:
        """As `PagedStore.context`."""
        assert len(rows) == len(batch.seq_lens), f"{len(rows)} rows for {len(batch.seq_lens)} sequences"
        assert not batch.parents, "branches have no pages of their own"
        return CellContext(self, batch, rows)

    def scrub(self, pages: Sequence[int]) -> None:
        """Zeros in the place of what may not be numbers."""
        self._plain.scrub(pages)


@final
class CellContext(AttnContext):
    """A result holds until the next layer asks: all layers of the pass share its memory."""

    def __init__(self, store: CellStore, batch: Batch, rows: Sequence[Row]) -> None:
        self._store = store
        self._spans = tuple(Span(row.new, row.first) for row in rows)
        self._vision = CellVision(batch)
        self._room = Workspace()
        size = store.page_tokens
        places = [np.arange(row.past, row.held) for row in rows]
        slots = [row.pages[p // size] * size + p % size for row, p in zip(rows, places, strict=True)]
        counts = [-(-row.held // size) for row in rows]
        self._slots_T = torch.from_numpy(np.concatenate(slots))
        self._past = torch.tensor([row.past for row in rows])
        self._first_query = _offsets([row.new for row in rows])
        self._first_page = _offsets(counts)
        held = [row.pages[:count] for row, count in zip(rows, counts, strict=True)]
        self._pages_X = torch.from_numpy(np.concatenate(held))

    @property
    def spans(self) -> tuple[Span, ...]:
        return self._spans

    def vision(self, q_PNH: Tensor, k_PNH: Tensor, v_PNH: Tensor) -> Tensor:
        return self._vision.vision(q_PNH, k_PNH, v_PNH)

    def text(self, layer: int, q_TNH: Tensor, k_TKH: Tensor, v_TKH: Tensor) -> Tensor:
        store = self._store
        pages = ops.Pages(store.layer(layer), store.page_tokens)
        ops.write_pages(pages, self._slots_T, k_TKH, v_TKH)
        out = self._room.take("attended", *q_TNH.shape)
        return ops.attend_pages(pages, q_TNH, self._first_query, self._past, self._first_page, self._pages_X, out)


@final
class CellVision(AttnContext):
    """For seeing only: full attention within each segment of a batch without text. Results hold as in `CellContext`."""

    def __init__(self, batch: Batch) -> None:
        self._lens = tuple(n for n in batch.segment_lens if n)
        self._room = Workspace()
        self._plain = SegmentPlan.build(self._lens, causal=False)

    @property
    def spans(self) -> tuple[Span, ...]:
        return ()

    def text(self, layer: int, q_TNH: Tensor, k_TKH: Tensor, v_TKH: Tensor) -> Tensor:
        raise AssertionError("no text is read while seeing")

    def vision(self, q_PNH: Tensor, k_PNH: Tensor, v_PNH: Tensor) -> Tensor:
        if not can_attend(q_PNH.shape[-1], q_PNH.dtype, q_PNH.device):
            return self._plain.attend(q_PNH, k_PNH, v_PNH)
        return ops.attend_segments(q_PNH, k_PNH, v_PNH, self._lens, self._room)


def _offsets(counts: Sequence[int]) -> Tensor:
    return torch.tensor([0, *counts]).cumsum(0)
