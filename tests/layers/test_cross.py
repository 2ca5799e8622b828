"""The same queries over packed segments, against the loop."""

from __future__ import annotations

import pytest
import torch

from qvl.layers.cross import attend_shared, attend_shared_naive

LENS = {"equal": (6, 6, 6), "one": (9,), "mixed": (5, 8, 5, 1, 8, 3), "single keys": (1, 1)}


def tensors(lens: tuple[int, ...], queries: int = 4, heads: int = 3, size: int = 8) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    rows = (queries, sum(lens), sum(lens))
    return [torch.randn(n, heads, size, generator=generator, requires_grad=True) for n in rows]


@pytest.mark.parametrize("name", LENS)
@pytest.mark.parametrize("queries", [4, 600])  # short and long: the explicit and the fused way
def test_equals_the_loop(name: str, queries: int) -> None:
    lens = LENS[name]
    inputs = tensors(lens, queries)
    fast, slow = attend_shared(*inputs, lens), attend_shared_naive(*inputs, lens)
    assert fast.shape == (len(lens) * queries, 3, 8)
    torch.testing.assert_close(fast, slow, atol=1e-5, rtol=0)  # measured worst: 4e-7
    weights = torch.randn(fast.shape, generator=torch.Generator().manual_seed(1))
    for a, b in zip(
        torch.autograd.grad((fast * weights).sum(), inputs),
        torch.autograd.grad((slow * weights).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_segments(dtype: torch.dtype) -> None:
    q, k, v = (x.detach().to(dtype).requires_grad_() for x in tensors(()))
    out = attend_shared(q, k, v, ())
    assert out.shape == (0, 3, 8)
    assert all(not g.any() for g in torch.autograd.grad(out.sum(), [q, k, v]))
