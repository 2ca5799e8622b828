"""Pixels <-> packed patch rows.

Knows: normalisation, the order of rows (merge order) and of values in a row, the exact inverse.
Does not know: files, target sizes, tokens.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from qvl.media.resize import Geometry

Grid = tuple[int, int, int]


@lru_cache(maxsize=16)
def normalised_levels(geometry: Geometry) -> np.ndarray:
    """float32 [3, 256]: the value every 8-bit level of every channel becomes.

    The reference (transformers' image processor) multiplies by 1/255 in float64, rounds to float32, then subtracts
    the mean and divides by the std in float32. Eight bits have only 256 values, so doing exactly that once per
    level is both bit-identical and free.
    """
    unit = (np.arange(256, dtype=np.float64) * (1 / 255)).astype(np.float32)
    mean, std = np.asarray(geometry.mean, np.float32), np.asarray(geometry.std, np.float32)
    return (unit[None] - mean[:, None]) / std[:, None]


def grid_of(frames: int, hw: tuple[int, int], geometry: Geometry) -> Grid:
    """(time, height, width) in patches of `frames` frames of `hw` pixels; an odd frame count is rounded up."""
    height, width = hw
    if frames < 1 or height < 1 or width < 1 or height % geometry.factor or width % geometry.factor:
        raise ValueError(
            f"{frames} frame(s) of {height} x {width} pixels cannot be cut into patches: "
            f"there must be a frame, and both sides must be multiples of {geometry.factor}"
        )
    return -(-frames // geometry.temporal), height // geometry.patch, width // geometry.patch


def patchify(frames: np.ndarray, geometry: Geometry, out: Tensor | None = None) -> tuple[Tensor, Grid]:
    """Normalised rows of one picture (one frame) or one video.

    Args:
        frames: uint8 [F, H, W, 3], sides multiples of `geometry.factor`. One frame is a picture and fills every
            temporal slot; of an odd number of frames the last is repeated.
        out: float32 [P, C] contiguous rows to write into (a slice of a batch's buffer) instead of new memory.

    Returns:
        float32 [P, C] and the grid (t, h, w) in patches. Rows run over (t, h / 2, w / 2, 2, 2): the four patches of
        one vision token lie together. Values in a row run over (channel, temporal, y, x).
        A 28 x 56 picture has patches `a b e f` over `c d g h`, packed as `a b c d e f g h`.
    """
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3:
        raise ValueError(f"frames must be uint8 [F, H, W, 3], got {frames.dtype} {list(frames.shape)}")
    grid = grid_of(frames.shape[0], frames.shape[1:3], geometry)
    t, h, w = grid
    g, p = geometry, geometry.patch
    last = frames.shape[0] - 1
    index = np.minimum(np.arange(t * g.temporal), last)
    levels = normalised_levels(g)
    values = np.stack([levels[c][frames[index, ..., c]] for c in range(3)], axis=1)
    split = values.reshape(t, g.temporal, 3, h // g.merge, g.merge, p, w // g.merge, g.merge, p)
    rows = torch.from_numpy(np.ascontiguousarray(split.transpose(0, 3, 6, 4, 7, 2, 1, 5, 8)).reshape(t * h * w, g.row))
    if out is None:
        return rows, grid
    out.copy_(rows)
    return out, grid


def unpatchify(patches_PC: Tensor, grid: Grid, geometry: Geometry) -> np.ndarray:
    """uint8 [t * temporal, H, W, 3]: the exact inverse of `patchify` (a picture comes back as two equal frames)."""
    t, h, w = grid
    g, p = geometry, geometry.patch
    if tuple(patches_PC.shape) != (t * h * w, g.row):
        raise ValueError(
            f"patches of shape {list(patches_PC.shape)} do not belong to grid {grid}: expected {[t * h * w, g.row]}"
        )
    rows = patches_PC.detach().to("cpu", torch.float32).numpy()
    split = rows.reshape(t, h // g.merge, w // g.merge, g.merge, g.merge, 3, g.temporal, p, p)
    values = split.transpose(0, 6, 1, 3, 7, 2, 4, 8, 5).reshape(t * g.temporal, h * p, w * p, 3)
    mean, std = np.asarray(g.mean, np.float32), np.asarray(g.std, np.float32)
    return np.clip(np.rint((values * std + mean) * 255.0), 0, 255).astype(np.uint8)


def patch_hw(grid: Grid, merge: int) -> Tensor:
    """int64 [2, P]: row and column of every patch in its own frame, in merge order, repeated for each time step.

    Grid (1, 2, 4), merge 2: rows 0 0 1 1 0 0 1 1, columns 0 1 0 1 2 3 2 3.
    """
    t, h, w = grid
    if h % merge or w % merge:
        raise ValueError(f"grid {grid} (t, h, w) is not divisible by the merge size {merge}")
    rows = torch.arange(h).reshape(h // merge, 1, merge, 1).expand(-1, w // merge, -1, merge)
    columns = torch.arange(w).reshape(1, w // merge, 1, merge).expand(h // merge, -1, merge, -1)
    return torch.stack([rows.flatten(), columns.flatten()]).repeat(1, t)


def segment_lens(grids: Iterable[Grid]) -> tuple[int, ...]:
    """Patches of each attention segment: one per time step of each picture or video, h * w long."""
    return tuple(h * w for t, h, w in grids for _ in range(t))
