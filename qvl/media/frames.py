"""Frames of a video, one after the other, brought to one size.

Knows: frames given as a list, that all must be of one size, that only one decoded frame is held at a time.
Does not know: containers, how the size is chosen, patches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image

from qvl.media.clock import Clock
from qvl.media.image import view_image


def listed_frames(
    source: Sequence[Any] | np.ndarray, fps: float, max_source_pixels: int
) -> Iterator[tuple[float, np.ndarray]]:
    """Yields (seconds, uint8 [H, W, 3]); all frames as large as the first."""
    if len(source) == 0:
        raise ValueError("a video needs at least one frame, got an empty list")
    if not fps > 0:
        raise ValueError(f"fps must be above 0, got {fps}")
    return _open_listed(source, fps, max_source_pixels)


def _open_listed(
    source: Sequence[Any] | np.ndarray, fps: float, max_source_pixels: int
) -> Iterator[tuple[float, np.ndarray]]:
    first_hw = None
    for index, frame in enumerate(source):
        pixels = np.asarray(view_image(frame, max_source_pixels=max_source_pixels))
        first_hw = pixels.shape[:2] if first_hw is None else first_hw
        if pixels.shape[:2] != first_hw:
            raise ValueError(
                f"frame {index} is {pixels.shape[0]} x {pixels.shape[1]} but frame 0 is {first_hw[0]} x {first_hw[1]} "
                f"(height x width); all frames of a video must have one size"
            )
        yield index / fps, pixels


def resize_frames(
    frames: Iterator[tuple[float, np.ndarray]],
    count: int,
    size_for: Callable[[tuple[int, int]], tuple[int, int]],
    resizer: Callable[[Any, tuple[int, int]], np.ndarray],
    clock: Clock,
) -> tuple[np.ndarray, tuple[int, int], tuple[float, ...]]:
    """Frames at their final size, one decoded frame in memory at a time: uint8 [F, H, W, 3], original_hw, seconds."""
    kept, seconds, original_hw = None, [], (0, 0)
    for index in range(count):
        with clock.phase("decode"):
            at, pixels = next(frames)
        with clock.phase("resize"):
            if kept is None:
                original_hw = pixels.shape[:2]
                kept = np.empty((count, *size_for(original_hw), 3), np.uint8)
            kept[index] = resizer(Image.fromarray(pixels), kept.shape[1:3])
        seconds.append(at)
    assert kept is not None, "a video of no frames got past its checks"
    return kept, original_hw, tuple(seconds)
