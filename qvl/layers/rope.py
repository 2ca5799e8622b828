"""Rotary positions: one axis (text), two axes (vision patches), three axes (M-RoPE), all by one rule.

Also what Qwen-7B does to read more tokens than it was trained on: slower angles (dynamic NTK), longer queries (logn).

Knows: each rotary frequency belongs to one position axis; angle = position on that axis x frequency.
Does not know: where positions come from (`qvl.inputs.positions`).

    axis of frequency f      1-D:   0 0 0 0 0 0 ...
                             ViT:   0 0 0 | 1 1 1               (row, column)      half of the frequencies each
                             M-RoPE 0 0 | 1 1 1 | 2 2 2         (time, row, column), `sections` frequencies each

Rotation pairs channel j with channel j + H/2 ("NeoX" halves), angles are computed in float32.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def inverse_frequencies(size: int, theta: float) -> Tensor:
    """float32 [size / 2]: theta^(-2i / size), i = 0 .. size/2 - 1."""
    return 1.0 / (theta ** (torch.arange(0, size, 2, dtype=torch.float32) / size))


def text_angles(positions_RT: Tensor, size: int, theta: float, sections: tuple[int, ...]) -> Tensor:
    """Angles of text rows, float32 [T, H / 2].

    With three axes, `sections` says how many frequencies each axis gets, fastest first (Qwen2-VL: 16, 24, 24); the
    reference is `apply_multimodal_rotary_pos_emb`. With one axis every frequency turns with it.
    """
    inv_F = inverse_frequencies(size, theta).to(positions_RT.device)
    if positions_RT.shape[0] == 1:
        return positions_RT[0].float()[:, None] * inv_F
    axis_F = torch.repeat_interleave(
        torch.arange(len(sections), device=inv_F.device),
        torch.tensor(sections, device=inv_F.device),
        output_size=size // 2,
    )
    return positions_RT.index_select(0, axis_F).float().T * inv_F


def ntk_alpha(length: int, trained_len: int) -> int:
    """How much slower the angles of a sequence of `length` tokens turn: 1 up to `trained_len`, then 3 up to twice
    that, 7 up to four times, ... (`get_ntk_alpha` of the Qwen-7B reference)."""
    return 1 if length <= trained_len else 2 ** math.ceil(math.log2(length / trained_len) + 1) - 1


def ntk_angles(
    positions_1T: Tensor, size: int, theta: float, spans: tuple[tuple[int, int], ...], trained_len: int
) -> Tensor:
    """`text_angles` with theta raised for sequences beyond `trained_len`: theta * alpha^(size / (size - 2)).

    Args:
        spans: (rows, length) of each sequence. All of its rows turn by the alpha of `length`, and no other's do.
    """
    thetas = [theta * ntk_alpha(length, trained_len) ** (size / (size - 2)) for _, length in spans]
    if len(set(thetas)) == 1:
        return text_angles(positions_1T, size, thetas[0], ())
    parts = positions_1T.split([rows for rows, _ in spans], dim=1)
    return torch.cat([text_angles(p, size, t, ()) for p, t in zip(parts, thetas, strict=True)])


def logn_scale(positions_T: Tensor, trained_len: int) -> Tensor:
    """float32 [T]: what the query at position p is multiplied by, log(p + 1) to the base `trained_len`, at least 1."""
    return ((positions_T.float() + 1).log() / math.log(trained_len)).clamp(min=1)


def vision_angles(patch_hw_2P: Tensor, size: int, theta: float = 10000.0) -> Tensor:
    """Angles of patches, float32 [P, H / 2]: the first half turns with the row, the second with the column."""
    inv_F = inverse_frequencies(size // 2, theta).to(patch_hw_2P.device)
    return (patch_hw_2P.float()[:, :, None] * inv_F).transpose(0, 1).flatten(1)


def cos_sin(angles_TF: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosine and sine, each [T, 1, H / 2], computed in float32 and then cast."""
    return angles_TF.cos().to(dtype)[:, None], angles_TF.sin().to(dtype)[:, None]


def rotate(x_TNH: Tensor, cos_T1F: Tensor, sin_T1F: Tensor) -> Tensor:
    """Turns channel pairs (j, j + H/2) by the row's angles, in the dtype of the angles, and casts back."""
    a, b = x_TNH.to(cos_T1F.dtype).chunk(2, dim=-1)
    return torch.cat((a * cos_T1F - b * sin_T1F, b * cos_T1F + a * sin_T1F), dim=-1).to(x_TNH.dtype)
