"""Weights as integers: what rounding costs, and the way back."""

from __future__ import annotations

import pytest
import torch
from quick_model import needs_kernels

from qvl.engine.native import packing
from qvl.engine.native.packing import pack


@pytest.mark.parametrize("shape", [(5, 64), (3, 200), (130, 256)])
def test_the_way_back(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    matrix = torch.randn(shape).bfloat16()
    packed = pack(matrix, "int8")
    step = matrix.float().abs().amax(1, keepdim=True) / 127
    assert ((packed.unpacked(dtype=torch.float32) - matrix.float()).abs() <= 0.5001 * step).all()
    rows = torch.tensor([2, 0])
    assert torch.equal(packed.unpacked(rows), packed.unpacked()[rows])
    for group in (32, 64, 128):
        packed = pack(matrix, "int4", group)
        back = packed.unpacked()
        assert back.shape == shape
        assert torch.equal(packed.unpacked(rows), back[rows])
        # numbers that 4 bits can say come back as they are, up to the rounding of the scale to bfloat16
        again = pack(back, "int4", group).unpacked()
        torch.testing.assert_close(again.float(), back.float(), rtol=2**-6, atol=0)


def test_rounding_error_of_normal_weights() -> None:
    torch.manual_seed(0)
    matrix = torch.randn(64, 1536)

    def error(packed) -> float:
        return float((packed.unpacked(dtype=torch.float32) - matrix).norm() / matrix.norm())

    assert error(pack(matrix, "int8")) == pytest.approx(0.0080, abs=0.0005)
    errors = [error(pack(matrix, "int4", group)) for group in (32, 64, 128)]
    assert errors == pytest.approx([0.083, 0.091, 0.098], abs=0.003)


def test_zeros_stay_zeros() -> None:
    for how in ("int8", "int4"):
        assert not pack(torch.zeros(4, 128), how).unpacked().any()


def test_groups_there_are() -> None:
    with pytest.raises(ValueError, match="a group of int4 has 32, 64 or 128 weights, not 48"):
        pack(torch.zeros(4, 96), "int4", 48)


@needs_kernels
@pytest.mark.parametrize("shape", [(5, 64), (3, 200), (130, 1536)])
def test_kernels_pack_as_their_twin(shape: tuple[int, int], monkeypatch) -> None:
    torch.manual_seed(0)
    matrix = torch.randn(shape).bfloat16()
    matrix[1] = 0
    for how, group in (("int8", 64), ("int4", 32), ("int4", 64), ("int4", 128)):
        fast = pack(matrix, how, group)
        with monkeypatch.context() as patch:
            patch.setattr(packing, "library", lambda: None)
            slow = pack(matrix, how, group)
        # Two candidates for a scale may be equally good up to the order of a sum.
        same = (fast.scales == slow.scales).float().mean()
        assert same == 1 if how == "int8" else same > 0.999
        assert (fast.data == slow.data).float().mean() >= (1 if how == "int8" else 0.999)
