"""RMSNorm and SwiGLU against their formulas."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from qvl.layers.mlp import SwiGLU
from qvl.layers.norm import RMSNorm


def random_norm(width: int, eps: float, dtype: torch.dtype) -> RMSNorm:
    norm = RMSNorm(width, eps)
    with torch.no_grad():
        norm.weight.add_(torch.randn(width, generator=torch.Generator().manual_seed(1)))
    return norm.to(dtype)


def naive(norm: RMSNorm, x: torch.Tensor) -> torch.Tensor:
    """Normalised in float32, cast back, then multiplied by the weight."""
    wide = x.float()
    scaled = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + norm.eps)
    return norm.weight * scaled.to(x.dtype)


@pytest.mark.parametrize("eps", [1e-6, 1e-2])
def test_rms_norm_float32(eps: float) -> None:
    norm, x = random_norm(48, eps, torch.float32), torch.randn(7, 48, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(norm(x), naive(norm, x), rtol=0, atol=1e-6)  # measured 5e-7


def test_rms_norm_bfloat16_rounds_like_the_reference() -> None:
    norm = random_norm(48, 1e-6, torch.bfloat16)
    x = (3 * torch.randn(64, 48, generator=torch.Generator().manual_seed(0))).bfloat16()
    assert norm(x).dtype == torch.bfloat16
    assert (norm(x) == naive(norm, x)).float().mean() > 0.999  # float32 sums may differ in the last bit
    assert torch.allclose(norm(x).float(), naive(norm, x).float(), rtol=1e-2, atol=0)


def test_swiglu_gate_comes_first() -> None:
    mlp, x = SwiGLU(16, 24), torch.randn(5, 16, generator=torch.Generator().manual_seed(0))
    gate, up = mlp.gate_up.weight.split(24)
    expected = F.linear(F.silu(F.linear(x, gate)) * F.linear(x, up), mlp.down.weight)
    assert torch.allclose(mlp(x), expected, rtol=0, atol=1e-6)
