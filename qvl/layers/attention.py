"""Attention over packed rows, and the context through which a model asks for it.

Knows: how to attend within segments of a packed tensor, quickly and without an N x N mask.
Does not know: where the rows came from, caches, positions (queries and keys arrive already rotated).

A model holds an `AttnContext` and cannot tell training, prefill and decoding apart. `PackedContext` serves the
first two: every sequence is attended on its own, causally for text, fully for vision segments.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import defaultdict
from dataclasses import dataclass
from itertools import accumulate
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor

from qvl.batch import Batch

_EXPLICIT_MAX_LEN = 512
"""Up to this segment length matmul + softmax beats the CPU's fused kernel when a backward pass follows."""
_EXPLICIT_MAX_SCORES = 1 << 25
"""Most scores (segments x heads x length x length) the explicit path may hold at once: 128 MiB in float32."""
_PAD_WASTE = 1.3
"""Causal segments of similar length share one call if that computes at most this many times the real rows."""


@dataclass(frozen=True)
class Span:
    """The rows of one sequence in a pass."""

    rows: int
    first: int
    """Rows of the sequence's first pass (its prompt, with its parent's rows for a branch). What depends on a length
    goes by this one, so that it stays the same while the sequence grows."""


class AttnContext(ABC):
    """What a model asks for attention. Queries `[T, N, H]`, keys and values `[T, K, H]`, result `[T, N, H]`."""

    @property
    @abstractmethod
    def spans(self) -> tuple[Span, ...]:
        """The sequences of the pass, in the order of their rows."""

    @abstractmethod
    def text(self, layer: int, q_TNH: Tensor, k_TKH: Tensor, v_TKH: Tensor) -> Tensor:
        """Causal attention of decoder layer `layer` within each sequence (and its past, if there is one)."""

    @abstractmethod
    def vision(self, q_PNH: Tensor, k_PNH: Tensor, v_PNH: Tensor) -> Tensor:
        """Full attention within each vision segment."""


@final
class PackedContext(AttnContext):
    """No past: each sequence and each vision segment of a batch attends to itself."""

    def __init__(self, batch: Batch, *, fused: bool = False) -> None:
        """
        Args:
            fused: take the fused kernel always, as other devices than the CPU do.
        """
        device = batch.tokens_T.device
        self._fused = fused
        self._text = SegmentPlan.build(batch.seq_lens, causal=True, device=device, parents=batch.parents)
        self._vision = SegmentPlan.build(batch.segment_lens, causal=False, device=device)
        past = (batch.seq_lens[p] if p >= 0 else 0 for p in batch.parents or (-1,) * len(batch.seq_lens))
        self._spans = tuple(Span(n, before + n) for n, before in zip(batch.seq_lens, past, strict=True))

    @property
    def spans(self) -> tuple[Span, ...]:
        return self._spans

    def text(self, layer: int, q_TNH: Tensor, k_TKH: Tensor, v_TKH: Tensor) -> Tensor:
        return self._text.attend(q_TNH, k_TKH, v_TKH, fused=self._fused)

    def vision(self, q_PNH: Tensor, k_PNH: Tensor, v_PNH: Tensor) -> Tensor:
        return self._vision.attend(q_PNH, k_PNH, v_PNH, fused=self._fused)


@dataclass(frozen=True)
class _Group:
    """Segments attended in one call: queries `[segments, length]`, keys `[segments, keys]`."""

    segments: int
    length: int
    start: int
    """First row, if the segments are one contiguous run and see only themselves (then there are no indices)."""
    queries_X: Tensor | None = None
    """Row of each query, segment by segment."""
    keys_X: Tensor | None = None
    """Row of each key, segment by segment; None = the queries' rows."""
    hidden_SLY: Tensor | None = None
    """True where a query must not see a key, if that is more than the causal triangle."""


@final
class SegmentPlan:
    """Which rows attend together. Built once per batch, used by every layer.

    Segments of equal length form one call. Causal segments of *similar* length do too: the shorter ones are filled
    up with a repeated row, which no real query can see because it lies after them. Example, lengths (5, 9, 4)::

        group A: length 5, rows [[0 1 2 3 4], [14 15 16 17 17]]      group B: length 9, rows [[5 ... 13]]

    A branch (a causal segment with a parent) sees its parent's rows before its own.
    """

    def __init__(self, groups: list[_Group], order_T: Tensor | None, causal: bool) -> None:
        self._groups = groups
        self._order_T = order_T
        self._causal = causal

    @classmethod
    def build(
        cls,
        lens: tuple[int, ...],
        causal: bool,
        device: torch.device | str = "cpu",
        parents: tuple[int, ...] = (),
    ) -> SegmentPlan:
        """Plans attention for segments of `lens` rows that lie end to end (`parents` as in `Batch`)."""
        offsets = [0, *accumulate(lens)]
        if not parents and len(set(lens)) <= 1:
            groups = [_Group(len(lens), lens[0], 0)] if lens and lens[0] else []
            return cls(groups, None, causal)
        roots = [s for s, n in enumerate(lens) if n and (not parents or parents[s] < 0)]
        branches = [s for s, n in enumerate(lens) if n and parents and parents[s] >= 0]
        groups: list[_Group] = []
        order_T = torch.empty(offsets[-1], dtype=torch.long)
        filled = 0  # rows of the concatenated group outputs so far
        buckets = bucket_similar(lens, roots) if causal else _bucket_equal(lens, roots)
        for members in buckets + bucket_similar(lens, branches):
            group = _group(members, lens, offsets, parents, device)
            groups.append(group)
            for i, s in enumerate(members):
                begin = filled + i * group.length
                order_T[offsets[s] : offsets[s + 1]] = torch.arange(begin, begin + lens[s])
            filled += group.segments * group.length
        return cls(groups, order_T.to(device), causal)

    def attend(self, q_TNH: Tensor, k_TKH: Tensor, v_TKH: Tensor, *, fused: bool = False) -> Tensor:
        """Attention within segments, scaled by H^-0.5: `[T, N, H]`, `[T, K, H]` x 2 -> `[T, N, H]`."""
        if not self._groups:
            return q_TNH
        outs = [self._attend_group(g, q_TNH, k_TKH, v_TKH, fused) for g in self._groups]
        if self._order_T is None:
            return outs[0]
        return torch.cat(outs).index_select(0, self._order_T)

    def _attend_group(self, group: _Group, q_TNH: Tensor, k_TKH: Tensor, v_TKH: Tensor, fused: bool) -> Tensor:
        def take(x: Tensor, rows_X: Tensor | None) -> Tensor:
            if rows_X is None:
                x = x[group.start : group.start + group.segments * group.length]
            else:
                x = x.index_select(0, rows_X)
            return x.unflatten(0, (group.segments, -1)).transpose(1, 2)

        keys_X = group.queries_X if group.keys_X is None else group.keys_X
        q, k, v = take(q_TNH, group.queries_X), take(k_TKH, keys_X), take(v_TKH, keys_X)
        out = attend_dense(q, k, v, self._causal, group.hidden_SLY, fused=fused)
        return out.transpose(1, 2).flatten(0, 1)


def _group(
    members: list[int],
    lens: tuple[int, ...],
    offsets: list[int],
    parents: tuple[int, ...],
    device: torch.device | str,
) -> _Group:
    """Rows of the segments `members`, filled up to the longest; branches get their parents' rows as extra keys."""
    length = max(lens[s] for s in members)
    if len(members) == 1 and (not parents or parents[members[0]] < 0):
        return _Group(1, length, offsets[members[0]])
    starts_S = torch.tensor([offsets[s] for s in members])
    lens_S = torch.tensor([lens[s] for s in members])
    own_SL = starts_S[:, None] + torch.minimum(torch.arange(length), lens_S[:, None] - 1)
    queries_X = own_SL.flatten().to(device)
    if not parents or parents[members[0]] < 0:
        return _Group(len(members), length, 0, queries_X)
    past = max(lens[parents[s]] for s in members)
    past_starts_S = torch.tensor([offsets[parents[s]] for s in members])
    past_lens_S = torch.tensor([lens[parents[s]] for s in members])
    past_SC = past_starts_S[:, None] + torch.minimum(torch.arange(past), past_lens_S[:, None] - 1)
    fill_SLC = (torch.arange(past) >= past_lens_S[:, None])[:, None].expand(-1, length, -1)
    future_SLL = torch.ones(length, length, dtype=torch.bool).triu_(1).expand(len(members), -1, -1)
    return _Group(
        len(members),
        length,
        0,
        queries_X,
        torch.cat((past_SC, own_SL), dim=1).flatten().to(device),
        torch.cat((fill_SLC, future_SLL), dim=2).to(device),
    )


def _bucket_equal(lens: tuple[int, ...], members: list[int]) -> list[list[int]]:
    buckets: dict[int, list[int]] = defaultdict(list)
    for s in members:
        buckets[lens[s]].append(s)
    return list(buckets.values())


def bucket_similar(lens: tuple[int, ...], members: list[int]) -> list[list[int]]:
    """Longest first; a segment joins the open bucket while the bucket's filling stays under `_PAD_WASTE`."""
    buckets: list[list[int]] = []
    real = 0
    for s in sorted(members, key=lambda s: -lens[s]):
        if buckets and lens[buckets[-1][0]] * (len(buckets[-1]) + 1) <= _PAD_WASTE * (real + lens[s]):
            buckets[-1].append(s)
            real += lens[s]
        else:
            buckets.append([s])
            real = lens[s]
    return buckets


def attend_dense(
    q_SNLH: Tensor,
    k_SKYH: Tensor,
    v_SKYH: Tensor,
    causal: bool,
    hidden_SLY: Tensor | None = None,
    *,
    fused: bool = False,
) -> Tensor:
    """Attention of `S` segments of one length: `[S, N, L, H]`, `[S, K, Y, H]` x 2 -> `[S, N, L, H]`.

    `hidden_SLY` (True = not seen) replaces the causal triangle if given. Short segments on the CPU take explicit
    matmul + softmax (its backward is about twice as fast there), everything else the fused kernel, which never holds
    the L x L scores. In float32, also when a backward pass follows under autocast (the fused kernel's bfloat16 backward
    is slower than that): bfloat16 would round the scores, and Qwen2's large query and key biases make those so large
    that this shows (relative error 0.11 against 0.002 at scores around 100).
    """
    segments, heads, length, _ = q_SNLH.shape
    short = not fused and explicit(segments, heads, length, k_SKYH.shape[2]) and q_SNLH.device.type == "cpu"
    learns = torch.is_grad_enabled() and (q_SNLH.requires_grad or k_SKYH.requires_grad or v_SKYH.requires_grad)
    lower = torch.is_autocast_enabled("cpu") and learns
    if short and (lower or q_SNLH.dtype == torch.float32):
        if hidden_SLY is None and causal:
            hidden_SLY = torch.ones(1, length, length, dtype=torch.bool, device=q_SNLH.device).triu_(1)
        if not lower:
            return _attend_explicit(q_SNLH, k_SKYH, v_SKYH, hidden_SLY)
        with torch.autocast("cpu", enabled=False):
            return _attend_explicit(q_SNLH.float(), k_SKYH.float(), v_SKYH.float(), hidden_SLY)
    grouped = k_SKYH.shape[1] != heads
    seen = None if hidden_SLY is None else ~hidden_SLY[:, None]
    return F.scaled_dot_product_attention(
        q_SNLH, k_SKYH, v_SKYH, attn_mask=seen, is_causal=causal and seen is None, enable_gqa=grouped
    )


def explicit(segments: int, heads: int, length: int, keys: int) -> bool:
    """Whether the CPU attends in float32 with its scores written out, which a backward pass then keeps."""
    return length <= _EXPLICIT_MAX_LEN and segments * heads * length * keys <= _EXPLICIT_MAX_SCORES


def _attend_explicit(q_SNLH: Tensor, k_SKYH: Tensor, v_SKYH: Tensor, hidden_SLY: Tensor | None) -> Tensor:
    segments, heads, length, size = q_SNLH.shape
    kv_heads = k_SKYH.shape[1]
    # Query heads that share a key head become more query rows of it, so keys are never copied.
    q_SKXH = (q_SNLH * size**-0.5).reshape(segments, kv_heads, heads // kv_heads * length, size)
    scores_SKXY = q_SKXH @ k_SKYH.transpose(-1, -2)
    if hidden_SLY is not None:
        per_head = scores_SKXY.unflatten(2, (-1, length))
        scores_SKXY = per_head.masked_fill(hidden_SLY[:, None, None], float("-inf")).flatten(2, 3)
    return (scores_SKXY.softmax(-1) @ v_SKYH).reshape(segments, heads, length, size)


def attend_naive(
    q_TNH: Tensor,
    k_TKH: Tensor,
    v_TKH: Tensor,
    lens: tuple[int, ...],
    causal: bool,
    parents: tuple[int, ...] = (),
) -> Tensor:
    """The slow twin of `SegmentPlan.attend`: one dense mask over all rows. For tests."""
    total = q_TNH.shape[0]
    segment_T = torch.repeat_interleave(torch.arange(len(lens)), torch.tensor(lens))
    allowed_TT = segment_T[:, None] == segment_T[None, :]
    if causal:
        allowed_TT &= torch.ones(total, total, dtype=torch.bool).tril()
    if parents:
        allowed_TT |= torch.tensor(parents)[segment_T][:, None] == segment_T[None, :]
    repeat = q_TNH.shape[1] // k_TKH.shape[1]
    k_TNH = k_TKH.repeat_interleave(repeat, dim=1)
    v_TNH = v_TKH.repeat_interleave(repeat, dim=1)
    scores_NTT = torch.einsum("qnh,knh->nqk", q_TNH, k_TNH) * q_TNH.shape[-1] ** -0.5
    weights_NTT = scores_NTT.masked_fill(~allowed_TT, float("-inf")).softmax(-1)
    return torch.einsum("nqk,knh->qnh", weights_NTT, v_TNH)
