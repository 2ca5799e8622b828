"""Keys and values in pages, and attention over them.

Knows: where a sequence's past lies, how to attend to it without computing it again.
Does not know: requests, tokens, which pages are whose (`kv_pool`), positions (keys arrive already rotated).

Per layer there is one tensor `[2K, pages, page * H]`: the K key heads, then the K value heads, of all pages. So the
pages of many rows are gathered with a single `index_select` per layer, and the pages of a single row that lie side by
side are not gathered at all, but viewed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from qvl.batch import Batch
from qvl.layers.attention import AttnContext, SegmentPlan, Span, attend_dense
from qvl.layers.decoder import DecoderConfig

_NUMPY_OF = {torch.float32: np.float32, torch.bfloat16: np.int16, torch.float16: np.float16}
_SLACK = 1.5
"""Decoded rows of different lengths share one product if that reads at most this many times their pages."""
_ALWAYS_SHARED = 64
"""... or wastes at most this many pages."""
_LINE = 64
"""Bytes that a processor reads at once: pages begin where such a line does."""


@dataclass(frozen=True)
class Row:
    """One sequence of a pass: where it lies, how much of it is there already."""

    pages: NDArray[np.int64]
    """Its pages in order, enough for `past + new` tokens."""
    past: int
    new: int
    first: int
    """Length of its prompt (`Span.first`), whatever part of it this pass computes."""

    @property
    def held(self) -> int:
        return self.past + self.new

    @property
    def kind(self) -> int:
        """0 = one more token, 1 = begins here, 2 = goes on by several tokens."""
        return 1 if self.past == 0 else 0 if self.new == 1 else 2


@final
class PagedStore:
    def __init__(self, config: DecoderConfig, pages: int, page_tokens: int, dtype: torch.dtype, device: torch.device):
        self.page_tokens = page_tokens
        self.dtype = dtype
        self.device = device
        self._heads = config.kv_heads
        shape = (2 * config.kv_heads, pages, page_tokens * config.head_size)
        # Zeros, not empty: what a mask hides is still multiplied by 0, and 0 x NaN is NaN.
        self._layers = [_zeros(shape, dtype, device) for _ in range(config.layers)]

    @staticmethod
    def page_bytes(config: DecoderConfig, page_tokens: int, dtype: torch.dtype) -> int:
        """Memory of one page in all layers."""
        return config.layers * 2 * config.kv_heads * page_tokens * config.head_size * dtype.itemsize

    def context(self, batch: Batch, rows: Sequence[Row]) -> PagedContext:
        """Attention for a pass in which sequence s of `batch` is `rows[s]`.

        Rows come by kind, and among those with one more token the longest first.
        """
        assert len(rows) == len(batch.seq_lens), f"{len(rows)} rows for {len(batch.seq_lens)} sequences"
        assert not batch.parents, "branches have no pages of their own"
        return PagedContext(self, batch, rows)

    def layer(self, layer: int) -> Tensor:
        """All pages of a layer, `[2K, pages, page * H]`."""
        return self._layers[layer]

    def width(self, tokens: int) -> int:
        """Tokens that there is room for in the pages of so many."""
        return -(-tokens // self.page_tokens) * self.page_tokens

    def write(self, layer: int, slots_T: Tensor, k_TKH: Tensor, v_TKH: Tensor) -> None:
        """Puts token t into slot `slots_T[t]` = page * page_tokens + place in the page."""
        slots_2KXH = self._layers[layer].unflatten(2, (self.page_tokens, -1)).flatten(1, 2)
        slots_2KXH[: self._heads].index_copy_(1, slots_T, k_TKH.transpose(0, 1))
        slots_2KXH[self._heads :].index_copy_(1, slots_T, v_TKH.transpose(0, 1))

    def read(self, layer: int, block: Block) -> tuple[Tensor, Tensor]:
        """Keys and values `[B, K, Y, H]` of the rows of a block, as many tokens as the longest has pages for."""
        store = self._layers[layer]
        if block.first_page is not None:
            got = store[:, block.first_page : block.first_page + block.width]
        else:
            got = store.index_select(1, block.pages_X)
        got_2KBYH = got.view(2 * self._heads, block.rows, block.width * self.page_tokens, -1)
        return got_2KBYH[: self._heads].transpose(0, 1), got_2KBYH[self._heads :].transpose(0, 1)

    def scrub(self, pages: Sequence[int]) -> None:
        """Zeros in the place of what may not be numbers."""
        if len(pages):
            pages_X = torch.tensor(list(pages), device=self.device)
            for store in self._layers:
                store.index_fill_(1, pages_X, 0)


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """On the CPU the system hands out memory page by page as it is written: a large cache costs what is used of it."""
    if device.type == "cpu" and dtype in _NUMPY_OF:
        count, spare = math.prod(shape), _LINE // dtype.itemsize
        numbers = np.zeros(count + spare, _NUMPY_OF[dtype])
        first = -numbers.ctypes.data % _LINE // dtype.itemsize
        return torch.from_numpy(numbers[first : first + count].reshape(shape)).view(dtype)
    return torch.zeros(shape, dtype=dtype, device=device)


@dataclass(frozen=True)
class Block:
    """Rows that are attended in one product, and the pages they lie in."""

    rows: int
    width: int
    """Pages of the longest."""
    pages_X: Tensor
    """Row by row; shorter ones are filled up with a page of their own."""
    first_page: int | None
    """Set if it is one row whose pages lie side by side."""

    @classmethod
    def of(cls, rows: Sequence[Row], page_tokens: int, device: torch.device) -> Block:
        counts = [-(-row.held // page_tokens) for row in rows]
        width = max(counts)
        pages = np.empty((len(rows), width), np.int64)
        for into, row, count in zip(pages, rows, counts, strict=True):
            into[:count], into[count:] = row.pages[:count], row.pages[0]
        beside = len(rows) == 1 and bool((np.diff(pages[0]) == 1).all())
        pages_X = torch.from_numpy(pages.ravel()).to(device)
        return cls(len(rows), width, pages_X, int(pages[0, 0]) if beside else None)


@final
class PagedContext(AttnContext):
    """Each sequence of a batch attends to its past and to itself.

    Three ways to the same numbers: rows with one more token are attended together, sequences that begin here as in
    `PackedContext`, sequences that go on by several tokens one by one.
    """

    def __init__(self, store: PagedStore, batch: Batch, rows: Sequence[Row]) -> None:
        device, size = store.device, store.page_tokens
        self._store = store
        self._spans = tuple(Span(row.new, row.first) for row in rows)
        places = [np.arange(row.past, row.held) for row in rows]
        slots = [row.pages[p // size] * size + p % size for row, p in zip(rows, places, strict=True)]
        self._slots_T = torch.from_numpy(np.concatenate(slots)).to(device)
        kinds = [row.kind for row in rows]
        assert kinds == sorted(kinds), f"rows of kinds {kinds} are not in order"
        steps, fresh, longer = ([row for row in rows if row.kind == kind] for kind in range(3))
        self._steps = [(Block.of(part, size, device), self._bias(part)) for part in similar(steps, size)]
        self._fresh_tokens = sum(row.new for row in fresh)
        self._fresh = SegmentPlan.build(tuple(row.new for row in fresh), causal=True, device=device)
        self._longer = [(Block.of([row], size, device), self._future(row)) for row in longer]
        self._vision = SegmentPlan.build(batch.segment_lens, causal=False, device=device)

    @property
    def spans(self) -> tuple[Span, ...]:
        return self._spans

    def vision(self, q_PNH: Tensor, k_PNH: Tensor, v_PNH: Tensor) -> Tensor:
        return self._vision.attend(q_PNH, k_PNH, v_PNH)

    def text(self, layer: int, q_TNH: Tensor, k_TKH: Tensor, v_TKH: Tensor) -> Tensor:
        self._store.write(layer, self._slots_T, k_TKH, v_TKH)
        outs: list[Tensor] = []
        at = 0
        for block, bias_B11Y in self._steps:
            k_BKYH, v_BKYH = self._store.read(layer, block)
            outs.append(attend_step(q_TNH[at : at + block.rows], k_BKYH, v_BKYH, bias_B11Y))
            at += block.rows
        if self._fresh_tokens:
            own = slice(at, at + self._fresh_tokens)
            outs.append(self._fresh.attend(q_TNH[own], k_TKH[own], v_TKH[own]))
            at += self._fresh_tokens
        for block, hidden_1LY in self._longer:
            k_1KYH, v_1KYH = self._store.read(layer, block)
            q_1NLH = q_TNH[at : at + hidden_1LY.shape[1]].transpose(0, 1)[None]
            outs.append(attend_dense(q_1NLH, k_1KYH, v_1KYH, False, hidden_1LY)[0].transpose(0, 1))
            at += hidden_1LY.shape[1]
        return outs[0] if len(outs) == 1 else torch.cat(outs)

    def _bias(self, rows: Sequence[Row]) -> Tensor:
        """[B, 1, 1, Y]: -inf where a row has no token."""
        store = self._store
        held_B = torch.tensor([row.held for row in rows], device=store.device)
        bias_BY = torch.zeros(len(rows), store.width(rows[0].held), dtype=store.dtype, device=store.device)
        hidden_BY = torch.arange(bias_BY.shape[1], device=store.device) >= held_B[:, None]
        return bias_BY.masked_fill_(hidden_BY, float("-inf"))[:, None, None]

    def _future(self, row: Row) -> Tensor:
        """[1, L, Y]: True where a key comes after a query."""
        device = self._store.device
        places_L = torch.arange(row.past, row.held, device=device)
        return (torch.arange(self._store.width(row.held), device=device) > places_L[:, None])[None]


def similar(rows: Sequence[Row], page_tokens: int) -> list[list[Row]]:
    """Rows, longest first, in runs that lose little by being filled up to their longest."""
    runs: list[list[Row]] = []
    real = longest = 0
    for row in rows:
        pages = -(-row.held // page_tokens)
        if runs and longest * (len(runs[-1]) + 1) <= max(_SLACK * (real + pages), real + pages + _ALWAYS_SHARED):
            runs[-1].append(row)
            real += pages
        else:
            runs.append([row])
            real = longest = pages
    return runs


def attend_step(q_BNH: Tensor, k_BKYH: Tensor, v_BKYH: Tensor, bias_B11Y: Tensor) -> Tensor:
    """One query per row against that row's keys: `[B, N, H]`, `[B, K, Y, H]` x 2 -> `[B, N, H]`."""
    # Query heads that share a key head become rows of one product, so keys are never copied.
    q_BKGH = q_BNH.unflatten(1, (k_BKYH.shape[1], -1))
    return F.scaled_dot_product_attention(q_BKGH, k_BKYH, v_BKYH, attn_mask=bias_B11Y).flatten(1, 2)
