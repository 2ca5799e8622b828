"""Patch rows: the reference's bits, the order by a picture small enough to read, the inverse."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import qvl.media.patches as patches_module
from qvl.media.patches import empty_rows, grid_of, patch_hw, patchify, segment_lens, unpatchify
from qvl.media.resize import Geometry

G = Geometry()
QWEN_VL = Geometry(merge=1, temporal=1)


def plain_patchify(frames: np.ndarray, g: Geometry) -> np.ndarray:
    """The slow twin: the reference's arithmetic (float64 rescaling) and one big transposition."""
    t, h, w = grid_of(len(frames), frames.shape[1:3], g)
    frames = frames[np.minimum(np.arange(t * g.temporal), len(frames) - 1)]
    unit = (frames.astype(np.float64) * (1 / 255)).astype(np.float32)
    values = (unit - np.asarray(g.mean, np.float32)) / np.asarray(g.std, np.float32)
    split = values.reshape(t, g.temporal, h // g.merge, g.merge, g.patch, w // g.merge, g.merge, g.patch, 3)
    return split.transpose(0, 2, 5, 3, 6, 8, 1, 4, 7).reshape(t * h * w, g.row)


def noise(frames: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (frames, height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("geometry", [G, QWEN_VL, Geometry(temporal=3), Geometry(patch=16, merge=4)])
@pytest.mark.parametrize("frames", [1, 2, 3, 5])
@pytest.mark.parametrize("block_values", [1, 1 << 14, 1 << 18])
def test_equals_the_slow_twin_bit_for_bit(geometry, frames, block_values, monkeypatch):
    monkeypatch.setattr(patches_module, "_BLOCK_VALUES", block_values)
    pixels = noise(frames, geometry.factor * 5, geometry.factor * 3)
    rows, grid = patchify(pixels, geometry)
    assert grid == (-(-frames // geometry.temporal), 5 * geometry.merge, 3 * geometry.merge)
    assert rows.dtype == torch.float32
    assert np.array_equal(rows.numpy(), plain_patchify(pixels, geometry))


def test_all_levels_of_all_channels_have_the_references_bits():
    levels = np.tile(np.arange(256, dtype=np.uint8), 28 * 28 * 4 // 256 + 1)[: 28 * 112]
    pixels = np.repeat(levels.reshape(1, 28, 112, 1), 3, axis=3)
    assert len(np.unique(pixels)) == 256
    assert np.array_equal(patchify(pixels, G)[0].numpy(), plain_patchify(pixels, G))


def test_order_of_rows_and_values():
    """28 x 56 pixels: patches a b c d over e f g h are packed a b e f c d g h."""
    letters = np.array([[0, 1, 2, 3], [4, 5, 6, 7]], np.uint8)
    pixels = np.kron(letters, np.ones((14, 14), np.uint8))[None, :, :, None].repeat(3, axis=3)
    unit = Geometry(mean=(0.0, 0.0, 0.0), std=(1 / 255, 1 / 255, 1 / 255))
    rows, grid = patchify(pixels, unit)
    assert grid == (1, 2, 4)
    assert rows.mean(dim=1).round().int().tolist() == [0, 1, 4, 5, 2, 3, 6, 7]

    frames = noise(2, 28, 28)
    row = patchify(frames, unit)[0][3].reshape(3, 2, 14, 14)  # the patch at the bottom right: channel, time, y, x
    assert np.array_equal(row[1, 1].round().numpy(), frames[1, 14:, 14:, 1])


@pytest.mark.parametrize("frames", [1, 2, 5, 6])
def test_unpatchify_is_the_inverse(frames):
    pixels = noise(frames, 84, 56)
    rows, grid = patchify(pixels, G)
    back = unpatchify(rows, grid, G)
    assert back.shape == (grid[0] * 2, 84, 56, 3)
    assert np.array_equal(back[:frames], pixels)
    assert (back[frames:] == pixels[-1]).all()


def test_writes_into_a_slice_of_a_buffer():
    first, second = noise(1, 56, 56), noise(3, 28, 84, seed=1)
    buffer = empty_rows(16 + 24, G)
    patchify(first, G, out=buffer[:16])
    rows, _ = patchify(second, G, out=buffer[16:])
    assert rows.data_ptr() == buffer[16:].data_ptr()
    assert np.array_equal(buffer.numpy(), np.concatenate([plain_patchify(first, G), plain_patchify(second, G)]))
    with pytest.raises(ValueError, match=r"out must be float32 \[16, 1176\]"):
        patchify(first, G, out=buffer)
    with pytest.raises(ValueError, match=r"out must be float32"):
        patchify(first, G, out=buffer[:16].double())
    with pytest.raises(ValueError, match=r"contiguous"):
        patchify(first, G, out=torch.empty(32, 1176)[::2])


@pytest.mark.parametrize("hw", [(57, 56), (56, 14), (0, 28)])
def test_sides_must_be_multiples(hw):
    with pytest.raises(ValueError, match="multiples of 28"):
        patchify(np.zeros((1, *hw, 3), np.uint8), G)


def test_bad_frames_and_rows():
    with pytest.raises(ValueError, match=r"uint8 \[F, H, W, 3\]"):
        patchify(np.zeros((1, 28, 28, 3), np.float32), G)
    with pytest.raises(ValueError, match="must be a frame"):
        patchify(np.zeros((0, 28, 28, 3), np.uint8), G)
    with pytest.raises(ValueError, match=r"do not belong to grid \(1, 4, 4\)"):
        unpatchify(torch.zeros(15, 1176), (1, 4, 4), G)


def test_patch_positions_follow_the_rows():
    assert patch_hw((1, 2, 4), 2).tolist() == [[0, 0, 1, 1, 0, 0, 1, 1], [0, 1, 0, 1, 2, 3, 2, 3]]
    assert patch_hw((1, 2, 2), 1).tolist() == [[0, 0, 1, 1], [0, 1, 0, 1]]
    # a picture that shows its own patch row and column comes back as those numbers
    rows, columns = np.mgrid[:6, :8].astype(np.uint8)
    pixels = np.kron(np.stack([rows, columns, rows], -1), np.ones((14, 14, 1), np.uint8))[None].repeat(3, axis=0)
    unit = Geometry(mean=(0.0, 0.0, 0.0), std=(1 / 255, 1 / 255, 1 / 255))
    packed, grid = patchify(pixels, unit)
    seen = packed.reshape(-1, 3, 2 * 196).mean(dim=2).round().long().T
    ids = patch_hw(grid, 2)
    assert ids.dtype == torch.int64
    assert torch.equal(ids, seen[:2])
    with pytest.raises(ValueError, match="not divisible by the merge size 2"):
        patch_hw((1, 3, 4), 2)


def test_segments_are_single_time_steps():
    assert segment_lens([(1, 4, 6), (3, 2, 2)]) == (24, 4, 4, 4)
    assert segment_lens([]) == ()
