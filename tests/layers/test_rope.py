"""Rotary positions against the written-out formula."""

from __future__ import annotations

import math

import pytest
import torch

from qvl.layers.rope import (
    cos_sin,
    inverse_frequencies,
    logn_scale,
    ntk_alpha,
    ntk_angles,
    rotate,
    text_angles,
    vision_angles,
)


def turned(x: list[float], angles: list[float]) -> list[float]:
    """Channel pairs (j, j + H/2) turned in the plane, one by one."""
    half = len(x) // 2
    out = [0.0] * len(x)
    for j, a in enumerate(angles):
        out[j] = x[j] * math.cos(a) - x[j + half] * math.sin(a)
        out[j + half] = x[j] * math.sin(a) + x[j + half] * math.cos(a)
    return out


def check(angles_TF: torch.Tensor, expected: list[list[float]], size: int) -> None:
    assert angles_TF.dtype == torch.float32
    x_TNH = torch.randn(len(expected), 2, size, generator=torch.Generator().manual_seed(0))
    y_TNH = rotate(x_TNH, *cos_sin(angles_TF, torch.float32))
    for t, angles in enumerate(expected):
        for n in range(2):
            assert y_TNH[t, n].tolist() == pytest.approx(turned(x_TNH[t, n].tolist(), angles), abs=1e-5)


def test_three_axes() -> None:
    positions_RT = torch.tensor([[0, 3, 11], [0, 5, 7], [0, 2, 9]])
    axis = [0, 0, 1, 1, 1, 2, 2, 2]
    size, theta = 16, 1e4
    expected = [
        [float(positions_RT[axis[f], t]) * theta ** (-2 * f / size) for f in range(size // 2)] for t in range(3)
    ]
    check(text_angles(positions_RT, size, theta, (2, 3, 3)), expected, size)


def test_one_axis() -> None:
    positions_RT = torch.tensor([[0, 1, 17]])
    expected = [[p * 50.0 ** (-2 * f / 8) for f in range(4)] for p in (0, 1, 17)]
    check(text_angles(positions_RT, 8, 50.0, ()), expected, 8)


def test_three_equal_axes_are_one() -> None:
    positions_RT = torch.arange(9)[None]
    three = text_angles(positions_RT.expand(3, -1), 16, 1e6, (2, 3, 3))
    assert torch.equal(three, text_angles(positions_RT, 16, 1e6, ()))


def test_vision_rows_and_columns() -> None:
    patch_hw_2P = torch.tensor([[0, 1, 6], [4, 0, 3]])
    frequencies = [10000.0 ** (-2 * i / 8) for i in range(4)]  # head 16: 4 for the row, then 4 for the column
    expected = [
        [row * f for f in frequencies] + [column * f for f in frequencies]
        for row, column in zip(*patch_hw_2P.tolist(), strict=True)
    ]
    check(vision_angles(patch_hw_2P, 16), expected, 16)


def test_released_frequencies() -> None:
    """Golden: the released vision head (80) has 20 frequencies per axis, 10000^(-2i / 40)."""
    inv_F = inverse_frequencies(40, 10000.0)
    assert inv_F.shape == (20,)
    assert inv_F[[0, 1, 19]].tolist() == pytest.approx([1.0, 10000 ** (-1 / 20), 10000 ** (-19 / 20)])


def test_only_differences_count() -> None:
    """A query and a key moved together keep their product."""
    q, k = torch.randn(2, 1, 1, 16, generator=torch.Generator().manual_seed(0)).unbind(0)

    def product(p: int, r: int) -> float:
        a, b = (
            rotate(x, *cos_sin(text_angles(torch.tensor([[i]]), 16, 1e4, ()), torch.float32))
            for x, i in ((q, p), (k, r))
        )
        return float((a * b).sum())

    assert product(9, 4) == pytest.approx(product(105, 100), abs=1e-4)
    assert product(9, 4) != pytest.approx(product(9, 5), abs=1e-2)


def test_vision_rotates_in_float32() -> None:
    """float32 angles turn bfloat16 heads in float32 and cast back once."""
    x = torch.randn(5, 2, 16, generator=torch.Generator().manual_seed(0)).bfloat16()
    cos, sin = cos_sin(vision_angles(torch.arange(10).view(2, 5), 16), torch.float32)
    assert torch.equal(rotate(x, cos, sin), rotate(x.float(), cos, sin).bfloat16())


def test_dynamic_ntk_values() -> None:
    """The reference's rule at its own sizes (trained on 2048 tokens, heads of 128)."""
    assert [ntk_alpha(n, 2048) for n in (1, 2048, 2049, 4096, 4097, 8192, 8193)] == [1, 1, 3, 3, 7, 7, 15]
    positions_1T = torch.arange(5)[None]
    for length, base in ((2048, 10000.0), (4000, 30527.74), (8192, 72195.86)):
        angles = ntk_angles(positions_1T, 128, 10000.0, ((5, length),), 2048)
        torch.testing.assert_close(angles, text_angles(positions_1T, 128, base, ()), rtol=1e-6, atol=0)


def test_each_sequence_turns_by_its_own_length() -> None:
    positions_1T = torch.tensor([[0, 1, 2, 7, 0, 1]])
    spans = ((3, 3), (1, 70), (2, 20))
    together = ntk_angles(positions_1T, 16, 1e4, spans, 16)
    starts = (0, 3, 4)
    for start, (rows, length) in zip(starts, spans, strict=True):
        alone = ntk_angles(positions_1T[:, start : start + rows], 16, 1e4, ((rows, length),), 16)
        assert torch.equal(together[start : start + rows], alone)


def test_longer_queries() -> None:
    scale = logn_scale(torch.tensor([0, 100, 2047, 2048, 4095, 32766]), 2048)
    wanted = [1.0, 1.0, 1.0, math.log(2049, 2048), math.log(4096, 2048), math.log(32767, 2048)]
    assert scale.tolist() == pytest.approx(wanted, abs=1e-6)
