"""The fast path (groups of segments, explicit or fused) against the slow twin (one dense mask), with gradients."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from qvl.layers import attention
from qvl.layers.attention import SegmentPlan, attend_dense, attend_naive

CLOSE = 1e-5  # of values of size about 1; measured worst case 4e-7 forward, 2.4e-6 gradients (six heads sharing a key)


def heads(total: int, n: int, k: int, size: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(total, m, size, generator=g).requires_grad_() for m in (n, k, k))


def both_ways(
    lens: tuple[int, ...], causal: bool, n: int, k: int, parents: tuple[int, ...] = (), size: int = 8
) -> tuple[float, float]:
    """Largest difference of outputs and of gradients between the plan and its twin."""
    outs, grads = [], []
    weight = torch.randn(sum(lens), n, size, generator=torch.Generator().manual_seed(1))
    for way in ("plan", "naive"):
        qkv = heads(sum(lens), n, k, size)
        if way == "plan":
            out = SegmentPlan.build(lens, causal, parents=parents).attend(*qkv)
        else:
            out = attend_naive(*qkv, lens, causal, parents)
        outs.append(out)
        grads.append(torch.autograd.grad((out * weight).sum(), qkv))
    apart = [float((a - b).abs().max()) for a, b in zip(*grads, strict=True)]
    return float((outs[0] - outs[1]).detach().abs().max()), max(apart)


ragged = st.lists(st.integers(1, 17), min_size=1, max_size=7).map(tuple)
head_counts = st.sampled_from([(1, 1), (4, 4), (4, 2), (6, 1)])


@given(ragged, st.booleans(), head_counts)
@settings(max_examples=40, deadline=None)
def test_segments_equal_the_dense_mask(lens: tuple[int, ...], causal: bool, counts: tuple[int, int]) -> None:
    assert max(both_ways(lens, causal, *counts)) < CLOSE


@given(ragged, st.booleans(), head_counts)
@settings(max_examples=25, deadline=None)
def test_so_does_the_fused_kernel(lens: tuple[int, ...], causal: bool, counts: tuple[int, int]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "_EXPLICIT_MAX_LEN", 0)
        assert max(both_ways(lens, causal, *counts)) < CLOSE


@st.composite
def families(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Lengths and parents: roots, each followed by some branches."""
    lens: list[int] = []
    parents: list[int] = []
    for _ in range(draw(st.integers(1, 3))):
        root = len(lens)
        lens.append(draw(st.integers(1, 12)))
        parents.append(-1)
        for _ in range(draw(st.integers(0, 3))):
            lens.append(draw(st.integers(1, 9)))
            parents.append(root)
    return tuple(lens), tuple(parents)


@given(families(), head_counts, st.booleans())
@settings(max_examples=40, deadline=None)
def test_branches_see_their_parent(
    family: tuple[tuple[int, ...], tuple[int, ...]], counts: tuple[int, int], fused: bool
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        if fused:
            patch.setattr(attention, "_EXPLICIT_MAX_LEN", 0)
        assert max(both_ways(family[0], True, *counts, parents=family[1])) < CLOSE


@pytest.mark.parametrize("causal", [True, False])
def test_one_segment_never_reaches_another(causal: bool) -> None:
    lens = (4, 7, 7, 2)
    q, k, v = (x.detach() for x in heads(20, 2, 2, 8))
    plan = SegmentPlan.build(lens, causal)
    before = plan.attend(q, k, v)
    k[4:11] += 100.0
    v[4:11] += 100.0
    after = plan.attend(q, k, v)
    same = (before == after).flatten(1).all(1)
    assert same[:4].all()
    assert same[11:].all()
    assert not same[4:11].any()


def test_causal_rows_do_not_see_later_ones() -> None:
    q, k, v = (x.detach() for x in heads(12, 2, 1, 8))
    plan = SegmentPlan.build((5, 7), causal=True)
    before = plan.attend(q, k, v)
    v[8:12] += 1.0  # rows 3 and later of the second segment
    changed = (plan.attend(q, k, v) != before).flatten(1).any(1)
    assert changed.tolist() == [False] * 8 + [True] * 4


def test_no_segments() -> None:
    empty = torch.zeros(0, 2, 8)
    assert SegmentPlan.build((), causal=False).attend(empty, empty, empty).shape == (0, 2, 8)


def test_similar_lengths_share_a_call() -> None:
    plan = SegmentPlan.build((10, 9, 50, 10, 48), causal=True)
    assert sorted((g.segments, g.length) for g in plan._groups) == [(2, 50), (3, 10)]
    assert len(SegmentPlan.build((16, 16, 36), causal=False)._groups) == 2


def test_many_pictures_hold_no_square_of_all_their_patches() -> None:
    """Neither segments of one length nor of many: the largest tensor is the scores of one group of equal segments."""

    class Watch(TorchDispatchMode):
        largest = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            found = out if isinstance(out, tuple) else (out,)
            self.largest = max([self.largest, *(x.numel() for x in found if isinstance(x, Tensor))])
            return out

    for lens in ((20,) * 60, tuple(range(11, 51, 2)) * 2):
        q, k, v = (x.detach() for x in heads(sum(lens), 2, 2, 4))
        plan = SegmentPlan.build(lens, causal=False)
        with Watch() as watch:
            plan.attend(q, k, v)
        assert 0 < watch.largest < sum(lens) ** 2 / 10, f"{watch.largest} numbers for {sum(lens)} rows"


def test_large_scores_survive_bfloat16() -> None:
    """Qwen2's query and key biases make scores of about 100, which bfloat16 would round by up to a quarter."""
    q, k, v = (x.detach().transpose(0, 1)[None] for x in heads(64, 4, 2, 32))
    q[..., 0] += 24.0
    k[..., 0] += 24.0
    q, k, v = q.bfloat16(), k.bfloat16(), v.bfloat16()
    exact = attend_dense(q.float(), k.float(), v.float(), causal=True)
    apart = (attend_dense(q, k, v, causal=True).float() - exact).abs().max() / exact.abs().max()
    assert apart < 0.01  # measured 0.002; with rounded scores 0.11


def test_under_autocast_only_what_learns_is_attended_in_float32() -> None:
    """A frozen tower's forward pass has nothing to go back through: it takes the fused kernel, as answering does."""
    q, k, v = (x.detach().transpose(0, 1)[None].bfloat16() for x in heads(48, 4, 2, 32))
    exact = attend_dense(q.float(), k.float(), v.float(), causal=False)
    with torch.autocast("cpu", torch.bfloat16):
        learned = attend_dense(q, k.requires_grad_(), v, causal=False)
        frozen = attend_dense(q, k.detach(), v, causal=False)
    assert learned.dtype == torch.float32
    assert torch.equal(learned, exact)
    assert frozen.dtype == torch.bfloat16
    assert (frozen.float() - exact).abs().max() < 0.02 * exact.abs().max()
