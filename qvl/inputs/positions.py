"""Rotary position ids of one sequence, from its structure: runs of text and vision grids.

Knows: the M-RoPE rule (Qwen2-VL paper section 2.1; reference: `get_rope_index`).
Does not know: tokens, pictures, other sequences (positions restart at 0 in each).

The rule: text counts up by one on all axes. A vision grid starts where the text stopped; its tokens add their own
time, row and column. The next run starts one past the largest position used so far, so an image of H x W tokens moves
the text on by max(H, W) only. Four text tokens and `<|vision_start|>`, a 2x2 picture, `<|vision_end|>` and a word::

    time    0 1 2 3 4 | 5 5 5 5 | 7 8
    row     0 1 2 3 4 | 5 5 6 6 | 7 8
    column  0 1 2 3 4 | 5 6 5 6 | 7 8        the first generated token gets 9
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class TextRun:
    length: int


@dataclass(frozen=True)
class VisionRun:
    """A grid of merged tokens: (temporal, height, width)."""

    grid: tuple[int, int, int]


Run = TextRun | VisionRun


def mrope_positions(runs: Sequence[Run]) -> tuple[NDArray[np.int64], int]:
    """Positions int64 [3, T] of `runs` in order, and the position of the token that would follow."""
    start = 0
    parts: list[NDArray[np.int64]] = []
    for run in runs:
        if isinstance(run, TextRun):
            parts.append(np.broadcast_to(np.arange(start, start + run.length), (3, run.length)))
            start += run.length
        else:
            parts.append(np.indices(run.grid).reshape(3, -1) + start)
            start += max(run.grid)
    if not parts:
        return np.zeros((3, 0), np.int64), 0
    return np.concatenate(parts, axis=1).astype(np.int64, copy=False), start


def linear_positions(runs: Sequence[Run]) -> tuple[NDArray[np.int64], int]:
    """Positions int64 [1, T] 0, 1, 2 ... (Qwen-VL, and the 1-D ablation), and the position that follows."""
    total = sum(run.length if isinstance(run, TextRun) else int(np.prod(run.grid)) for run in runs)
    return np.arange(total, dtype=np.int64)[None], total
