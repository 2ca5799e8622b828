"""Keys and values of rows that are being answered, and attention over them.

Knows: which row holds how many tokens and began with how many, how to attend to the past without computing it again.
Does not know: requests, tokens, sampling, positions (keys arrive already rotated).

Live rows are always 0 .. rows-1, so that a decoding step works on slices and copies nothing; when a row leaves, the
last one moves into its place. Memory is dense: every row has the capacity of the longest.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import final

import torch
from torch import Tensor

from qvl.batch import Batch
from qvl.layers.attention import AttnContext, SegmentPlan, Span, attend_dense

_FIRST_CAPACITY = 64
_GROWTH = 1.5


@final
class KVCache:
    """Per layer keys and values `[B, K, Y, H]` (Y: capacity in tokens), grown geometrically in both directions.

    K comes before Y so that one decoding step is a batched product over contiguous memory.
    """

    def __init__(self, layers: int, kv_heads: int, head_size: int, dtype: torch.dtype, device: torch.device) -> None:
        # Zeros, not empty: what a mask hides is still multiplied by 0, and 0 x NaN is NaN.
        empty = (0, kv_heads, 0, head_size)
        self._keys = [torch.zeros(empty, dtype=dtype, device=device) for _ in range(layers)]
        self._values = [torch.zeros(empty, dtype=dtype, device=device) for _ in range(layers)]
        self._lens: list[int] = []
        self._first: list[int] = []
        self.device = device

    @property
    def rows(self) -> int:
        """B: live rows."""
        return len(self._lens)

    @property
    def lens(self) -> tuple[int, ...]:
        """Tokens held by each live row."""
        return tuple(self._lens)

    def add_row(self) -> int:
        """Opens an empty row and returns its number."""
        self._lens.append(0)
        self._first.append(0)
        return self.rows - 1

    def drop_row(self, row: int) -> None:
        """Forgets `row`; the last row takes its number."""
        last = self.rows - 1
        if row != last:
            held = self._lens[last]
            for store in (*self._keys, *self._values):
                store[row, :, :held] = store[last, :, :held]
            self._lens[row], self._first[row] = self._lens[last], self._first[last]
        self._lens.pop()
        self._first.pop()

    def context(self, batch: Batch, rows: Sequence[int]) -> CachedContext:
        """Attention for a forward pass in which sequence s of `batch` goes on in row `rows[s]`.

        The room for the new tokens is taken at once: run the pass exactly once.
        """
        assert len(rows) == len(batch.seq_lens), f"{len(rows)} rows for {len(batch.seq_lens)} sequences"
        assert len(set(rows)) == len(rows), f"rows {list(rows)} repeat"
        assert not batch.parents, "branches have no rows of their own"
        past = [self._lens[row] for row in rows]
        for row, new in zip(rows, batch.seq_lens, strict=True):
            self._first[row] = self._first[row] or new
            self._lens[row] += new
        self._grow()
        spans = tuple(Span(new, self._first[row]) for row, new in zip(rows, batch.seq_lens, strict=True))
        return CachedContext(self, batch, tuple(rows), past, spans)

    def write(self, layer: int, rows_T: Tensor, slots_T: Tensor, k_TKH: Tensor, v_TKH: Tensor) -> None:
        """Puts token t into slot `slots_T[t]` of row `rows_T[t]`."""
        self._keys[layer][rows_T, :, slots_T] = k_TKH
        self._values[layer][rows_T, :, slots_T] = v_TKH

    def read(self, layer: int, rows: slice, held: int) -> tuple[Tensor, Tensor]:
        """Views of keys and values `[rows, K, held, H]`."""
        return self._keys[layer][rows, :, :held], self._values[layer][rows, :, :held]

    def _grow(self) -> None:
        have_rows, kv_heads, have, size = self._keys[0].shape
        rows, capacity = _enough(have_rows, self.rows, 1), _enough(have, max(self._lens), _FIRST_CAPACITY)
        if (rows, capacity) == (have_rows, have):
            return
        for stores in (self._keys, self._values):
            for layer, old in enumerate(stores):
                stores[layer] = old.new_zeros(rows, kv_heads, capacity, size)
                stores[layer][:have_rows, :, :have] = old


def _enough(have: int, needed: int, least: int) -> int:
    return have if needed <= have else max(needed, int(have * _GROWTH), least)


@final
class CachedContext(AttnContext):
    """Each sequence of a batch attends to its row's past and to itself.

    Three ways to the same numbers: no row has a past (prefill: as `PackedContext`), one token for each row (decode:
    one product over all rows), anything else (a prompt goes on: row by row).
    """

    def __init__(
        self, cache: KVCache, batch: Batch, rows: tuple[int, ...], past: list[int], spans: tuple[Span, ...]
    ) -> None:
        device = cache.device
        self._cache = cache
        self._rows = rows
        self._past = past
        self._lens = batch.seq_lens
        self._spans = spans
        slots = [slot for begin, n in zip(past, self._lens, strict=True) for slot in range(begin, begin + n)]
        self._slots_T = torch.tensor(slots, dtype=torch.long, device=device)
        of_row = [row for row, n in zip(rows, self._lens, strict=True) for _ in range(n)]
        self._rows_T = torch.tensor(of_row, dtype=torch.long, device=device)
        self._fresh = None if any(past) else SegmentPlan.build(self._lens, causal=True, device=device)
        self._step = max(self._lens) == 1 and rows == tuple(range(cache.rows))
        self._longest = max(begin + n for begin, n in zip(past, self._lens, strict=True))
        self._hidden_BY = self._not_held() if self._step else None
        self._vision = SegmentPlan.build(batch.segment_lens, causal=False, device=device)

    @property
    def spans(self) -> tuple[Span, ...]:
        return self._spans

    def text(self, layer: int, q_TNH: Tensor, k_TKH: Tensor, v_TKH: Tensor) -> Tensor:
        self._cache.write(layer, self._rows_T, self._slots_T, k_TKH, v_TKH)
        if self._fresh is not None:
            return self._fresh.attend(q_TNH, k_TKH, v_TKH)
        if self._step:
            k_BKYH, v_BKYH = self._cache.read(layer, slice(0, len(self._rows)), self._longest)
            return attend_step(q_TNH, k_BKYH, v_BKYH, self._hidden_BY)
        return self._continue(layer, q_TNH)

    def vision(self, q_PNH: Tensor, k_PNH: Tensor, v_PNH: Tensor) -> Tensor:
        return self._vision.attend(q_PNH, k_PNH, v_PNH)

    def _continue(self, layer: int, q_TNH: Tensor) -> Tensor:
        outs = []
        offsets = [0, *accumulate(self._lens)]
        for s, (row, past, new) in enumerate(zip(self._rows, self._past, self._lens, strict=True)):
            k_1KYH, v_1KYH = self._cache.read(layer, slice(row, row + 1), past + new)
            q_1NLH = q_TNH[offsets[s] : offsets[s + 1]].transpose(0, 1)[None]
            hidden_1LY = torch.ones(1, new, past + new, dtype=torch.bool, device=q_TNH.device).triu_(past + 1)
            outs.append(attend_dense(q_1NLH, k_1KYH, v_1KYH, False, hidden_1LY)[0].transpose(0, 1))
        return torch.cat(outs)

    def _not_held(self) -> Tensor | None:
        """True where a row has no token; None if all rows are equally long."""
        held = [past + 1 for past in self._past]
        if min(held) == self._longest:
            return None
        device = self._cache.device
        return torch.arange(self._longest, device=device) >= torch.tensor(held, device=device)[:, None]


def attend_step(q_BNH: Tensor, k_BKYH: Tensor, v_BKYH: Tensor, hidden_BY: Tensor | None) -> Tensor:
    """One query per row against that row's keys: `[B, N, H]`, `[B, K, Y, H]` x 2 -> `[B, N, H]`."""
    kv_heads, size = k_BKYH.shape[1], q_BNH.shape[2]
    # Query heads that share a key head become rows of one product, so keys are never copied.
    q_BKGH = (q_BNH * size**-0.5).unflatten(1, (kv_heads, -1))
    scores_BKGY = q_BKGH @ k_BKYH.transpose(-1, -2)
    if hidden_BY is not None:
        scores_BKGY = scores_BKGY.masked_fill(hidden_BY[:, None, None], float("-inf"))
    return (scores_BKGY.softmax(-1) @ v_BKYH).flatten(1, 2)
