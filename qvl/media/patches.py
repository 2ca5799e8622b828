"""Pixels <-> packed patch rows.

Knows: normalisation, the order of rows (merge order) and of values in a row, the exact inverse.
Does not know: files, target sizes, tokens.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from qvl.media.resize import Geometry

Grid = tuple[int, int, int]


_BLOCK_VALUES = 1 << 18
"""float32 values normalised at a time (1 MiB): fits the second-level cache."""


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
            temporal slot; where the last patch lacks frames, the last one is repeated.
        out: float32 [P, C] contiguous CPU rows to write into (a slice of a batch's buffer) instead of new memory.

    Returns:
        float32 [P, C] and the grid (t, h, w) in patches. Rows run over (t, h / 2, w / 2, 2, 2): the four patches of
        one vision token lie together. Values in a row run over (channel, temporal, y, x).
        A 28 x 56 picture has patches `a b c d` over `e f g h`, packed as `a b e f c d g h`.

    The values are those of transformers' image processor to the last bit; see `_normalise`.
    """
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3:
        raise ValueError(f"frames must be uint8 [F, H, W, 3], got {frames.dtype} {list(frames.shape)}")
    grid = grid_of(frames.shape[0], frames.shape[1:3], geometry)
    t, h, w = grid
    rows_PC = empty_rows(t * h * w, geometry) if out is None else out
    shape = (t * h * w, geometry.row)
    if rows_PC.shape != shape or rows_PC.dtype != torch.float32 or not rows_PC.is_contiguous():
        raise ValueError(
            f"out must be float32 {list(shape)}, contiguous, for grid {grid}; got {rows_PC.dtype} "
            f"{list(rows_PC.shape)} with strides {list(rows_PC.stride())}"
        )
    g, p = geometry, geometry.patch
    # p consecutive pixels of one channel stay together on the way from a plane to a row. Seen as one item of
    # 4 * p bytes, numpy moves them as a whole: twice as fast as number by number.
    run, square = np.dtype((np.void, 4 * p)), np.dtype((np.void, 4 * p * p))
    flat = rows_PC.numpy().reshape(-1)
    runs = flat.view(run).reshape(t, h // g.merge, w // g.merge, g.merge, g.merge, 3, g.temporal, p)
    squares = flat.view(square).reshape(t, h // g.merge, w // g.merge, g.merge, g.merge, 3, g.temporal)
    # Blocks of a few token rows keep the float planes in cache between normalising and moving.
    step = max(1, _BLOCK_VALUES // (3 * g.factor * w * p))
    planes = np.empty((3, min(step * g.factor, h * p), w * p), np.float32)
    for time in range(t):
        wanted = [min(time * g.temporal + slot, len(frames) - 1) for slot in range(g.temporal)]
        for top in range(0, h // g.merge, step):
            block = slice(top, top + step)
            for slot, index in enumerate(wanted):
                if slot and index == wanted[slot - 1]:  # a picture, or the repeated last frame
                    squares[time, block, ..., slot] = squares[time, block, ..., slot - 1]
                    continue
                pixels = frames[index, top * g.factor : (top + step) * g.factor]
                part = _normalise(pixels, planes[:, : len(pixels)], geometry)
                split = part.view(run).reshape(3, -1, g.merge, p, w // g.merge, g.merge)
                runs[time, block, ..., slot, :] = split.transpose(1, 4, 2, 5, 0, 3)
    return rows_PC, grid


def empty_rows(count: int, geometry: Geometry) -> Tensor:
    """Uninitialised float32 [count, C] rows. Allocated by numpy, which asks the system for huge pages where torch
    does not: the first touch of 300 MB costs 45 ms instead of 240."""
    return torch.from_numpy(np.empty((count, geometry.row), np.float32))


def _normalise(pixels: np.ndarray, out: np.ndarray, geometry: Geometry) -> np.ndarray:
    """uint8 [H, W, 3] -> float32 [3, H, W] in `out`: (x / 255 - mean) / std.

    The reference multiplies by 1/255 in float64 and rounds to float32 before it subtracts and divides in float32.
    For the 256 values there are, dividing in float32 gives the same bits (multiplying by a float32 1/255 does not);
    tests/media/test_patches.py compares all of them.
    """
    mean = np.asarray(geometry.mean, np.float32)[:, None, None]
    std = np.asarray(geometry.std, np.float32)[:, None, None]
    np.copyto(out, pixels.transpose(2, 0, 1))
    np.divide(out, np.float32(255), out=out)
    np.subtract(out, mean, out=out)
    return np.divide(out, std, out=out)


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
