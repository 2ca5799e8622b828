"""Where a patch is: square tables of position vectors, resized to the grids of the pictures at hand.

Knows: the fixed sine-cosine table, bicubic resizing, which row of which table belongs to a patch; unit vectors for the
places of vision tokens.
Does not know: what the vectors are added to.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor

Grids = tuple[tuple[int, int, int], ...]
_SLOWEST_PLACE = 20.0
"""How much slower than one radian a step the slowest sine of a place turns: less than half round on a grid of 60."""


def sine_table(side: int, width: int) -> Tensor:
    """float32 [side^2, width]: the 2-D sine-cosine table of MAE (`get_2d_sincos_pos_embed`), places in raster order.

    The first half of a vector tells the *column*, the second the row; each is `width / 4` sines, then as many cosines,
    of position x 10000^(-i / (width / 4)).
    """
    quarter = width // 4
    omega_F = 10000.0 ** (-torch.arange(quarter, dtype=torch.float64) / quarter)
    angles_XF = torch.arange(side, dtype=torch.float64)[:, None] * omega_F
    axis_XW = torch.cat((angles_XF.sin(), angles_XF.cos()), dim=1).float()
    columns, rows = axis_XW.repeat(side, 1), axis_XW.repeat_interleave(side, dim=0)
    return torch.cat((columns, rows), dim=1)


def place_vectors(place_2M: Tensor, width: int) -> Tensor:
    """float32 [M, width] of length 1 for rows and columns int64 [2, M]: sines and cosines of each, side by side.

    Frequencies fit small grids: one radian a step down to a twentieth of it.
    """
    quarter = width // 4
    omega_F = _SLOWEST_PLACE ** (-torch.arange(quarter, device=place_2M.device) / quarter)
    angles_2MF = place_2M[:, :, None] * omega_F
    vectors_MD = torch.cat((*angles_2MF.sin(), *angles_2MF.cos()), dim=1)
    return F.pad(F.normalize(vectors_MD, dim=1), (0, width - 4 * quarter))


def resize_table(table_XE: Tensor, hw: tuple[int, int]) -> Tensor:
    """A square table [side^2, E] for a grid of another size: [height * width, E], raster order.

    Bicubic in float32, neither aligned at the corners nor smoothed (`get_abs_pos`; pixels, in contrast, are).
    """
    side = isqrt(table_XE.shape[0])
    if hw == (side, side):
        return table_XE
    image_1EHW = table_XE.float().view(1, side, side, -1).permute(0, 3, 1, 2)
    resized = F.interpolate(image_1EHW, size=hw, mode="bicubic", align_corners=False)
    return resized[0].flatten(1).T.to(table_XE.dtype)


@final
@dataclass(frozen=True)
class PatchPlaces:
    """The place of every patch of a batch, for looking up any table.

    Two pictures of 1 x 2 and one of 2 x 1 patches: sizes ((1, 2), (2, 1)), and rows [0 1 0 1 2 3] of their two tables
    laid end to end.
    """

    sizes: tuple[tuple[int, int], ...]
    """The distinct (height, width) of the pictures, in patches."""
    rows_P: Tensor
    """Row of each patch in the tables of `sizes` laid end to end."""
    lens: tuple[int, ...]
    """Patches of each picture."""

    @classmethod
    def of(cls, grids: Grids, patch_hw_2P: Tensor) -> PatchPlaces:
        """`grids` and `patch_hw_2P` of a `Batch`; each frame of a video is a picture of its own."""
        pictures = [(h, w) for t, h, w in grids for _ in range(t)]
        starts, rows = {}, 0
        for h, w in dict.fromkeys(pictures):
            starts[h, w] = rows
            rows += h * w
        lens = tuple(h * w for h, w in pictures)
        lens_G = torch.tensor(lens, dtype=torch.long)
        start_G = torch.tensor([starts[hw] for hw in pictures], dtype=torch.long)
        width_G = torch.tensor([w for _, w in pictures], dtype=torch.long)
        start_width_2G = torch.stack((start_G, width_G))
        start_width_2P = start_width_2G.repeat_interleave(lens_G, dim=1, output_size=sum(lens)).to(patch_hw_2P.device)
        rows_P = start_width_2P[0] + patch_hw_2P[0] * start_width_2P[1] + patch_hw_2P[1]
        return cls(tuple(starts), rows_P, lens)

    def look_up(self, table_XE: Tensor) -> Tensor:
        """The vector of every patch, [P, E], from a square table resized to each picture's grid."""
        tables = [resize_table(table_XE, hw) for hw in self.sizes] or [table_XE]
        return torch.cat(tables).index_select(0, self.rows_P)
