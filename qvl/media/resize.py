"""How large a picture becomes, and making it so.

Knows: patch geometry, pixel budgets, the smart-resize rule, an exact and a fast bicubic resizer.
Does not know: files, patches' memory order, normalisation, tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

MAX_ASPECT_RATIO = 200
_LARGEST = 1 << 53
"""What an option may ask for: what is computed from it still fits a float."""


@dataclass(frozen=True)
class Geometry:
    """How pixels become patches. The defaults are Qwen2-VL's; Qwen-VL is `Geometry(merge=1, temporal=1)`."""

    patch: int = 14
    """Side of a patch in pixels."""
    merge: int = 2
    """merge x merge patches become one vision token."""
    temporal: int = 2
    """Frames per patch."""
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    """CLIP's channel means, of values 0..1."""
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)

    def __post_init__(self) -> None:
        for name in ("patch", "merge", "temporal"):
            if getattr(self, name) < 1:
                raise ValueError(f"geometry: {name} must be at least 1, got {getattr(self, name)}")
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise ValueError(f"geometry: need 3 means and 3 positive stds, got {self.mean} and {self.std}")

    @property
    def factor(self) -> int:
        """Side in pixels of the square that becomes one vision token; every side is a multiple of it."""
        return self.patch * self.merge

    @property
    def row(self) -> int:
        """Values in one patch row (C of the axis legend): 3 * 2 * 14 * 14 = 1176 for Qwen2-VL."""
        return 3 * self.temporal * self.patch * self.patch


@dataclass(frozen=True)
class PixelBudget:
    """Bounds on height * width of one picture after resizing; defaults: the official checkpoints' json.

    784 pixels (28 x 28) are one vision token, so the defaults are 4 .. 16,384 tokens.
    """

    min_pixels: int = 4 * 28 * 28
    max_pixels: int = 16384 * 28 * 28

    def __post_init__(self) -> None:
        check_bounds(self.min_pixels, self.max_pixels)


def check_bounds(min_pixels: int, max_pixels: int) -> None:
    if min_pixels < 1:
        raise ValueError(f"min_pixels must be at least 1, got {min_pixels}")
    if min_pixels > max_pixels:
        raise ValueError(
            f"min_pixels={min_pixels} is larger than max_pixels={max_pixels}; raise max_pixels or lower min_pixels"
        )


def smart_resize(
    height: int,
    width: int,
    factor: int = 28,
    min_pixels: int = PixelBudget.min_pixels,
    max_pixels: int = PixelBudget.max_pixels,
) -> tuple[int, int]:
    """(height, width) as multiples of `factor`, with min_pixels <= area <= max_pixels and nearly the same shape.

    Each side is rounded to the nearest multiple (halves to the even one: 42 -> 56, 70 -> 56), never below one
    `factor`; then both shrink (rounding down) or grow (rounding up) by one ratio where the area is out of bounds.
    A side never falls below `factor`, so an extremely thin picture with a very small budget may exceed it.
    Source: `smart_resize` of qwen-vl-utils and, for the shrinking branch, of transformers.

    Raises:
        ValueError: a side below 1, an aspect ratio above 200, or min_pixels > max_pixels.
    """
    check_bounds(min_pixels, max_pixels)
    if height < 1 or width < 1:
        raise ValueError(f"a picture of {height} x {width} (height x width) has no pixels")
    if max(height, width) > MAX_ASPECT_RATIO * min(height, width):
        raise ValueError(
            f"picture of {height} x {width} (height x width) has an aspect ratio of "
            f"{max(height, width) / min(height, width):.1f}, more than {MAX_ASPECT_RATIO}; crop or pad it"
        )
    new_height = max(factor, round(height / factor) * factor)
    new_width = max(factor, round(width / factor) * factor)
    if new_height * new_width > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        new_height = max(factor, math.floor(height / shrink / factor) * factor)
        new_width = max(factor, math.floor(width / shrink / factor) * factor)
    elif new_height * new_width < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        new_height = math.ceil(height * grow / factor) * factor
        new_width = math.ceil(width * grow / factor) * factor
    return new_height, new_width


def target_hw(
    original_hw: tuple[int, int],
    *,
    geometry: Geometry,
    budget: PixelBudget,
    min_pixels: float | None = None,
    max_pixels: float | None = None,
    resized_height: float | None = None,
    resized_width: float | None = None,
) -> tuple[int, int]:
    """The size a picture is resized to: its own options first, then the budget (whose minimum yields to a smaller
    maximum that was asked for).

    `resized_height` and `resized_width` come together and replace the original size before the rule is applied
    (so they are rounded to multiples of 28 and held within the pixel bounds), as in qwen-vl-utils.

    Raises:
        ValueError: only one of the two is given, min_pixels > max_pixels, or what `smart_resize` refuses.
    """
    upper = whole("max_pixels", max_pixels, budget.max_pixels)
    lower = whole("min_pixels", min_pixels, min(budget.min_pixels, upper))
    if (resized_height is None) != (resized_width is None):
        given, missing = ("resized_height", "resized_width")[:: 1 if resized_width is None else -1]
        raise ValueError(f"{given} is given without {missing}; give both or neither")
    height = whole("resized_height", resized_height, original_hw[0])
    width = whole("resized_width", resized_width, original_hw[1])
    return smart_resize(height, width, geometry.factor, lower, upper)


def whole(name: str, value: float | None, default: int) -> int:
    """`value` (or `default` for None) as a positive integer; ValueError naming the option otherwise."""
    if value is None:
        return default
    if isinstance(value, bool) or not 1 <= value <= _LARGEST or value != int(value):
        raise ValueError(f"{name} must be a whole number of at least 1 and at most {_LARGEST}, got {value!r}")
    return int(value)


def resize_exact(picture: Image.Image, hw: tuple[int, int]) -> np.ndarray:
    """uint8 [height, width, 3] by Pillow's bicubic, the resizer of the reference image processor."""
    height, width = hw
    if picture.size != (width, height):
        picture = picture.resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(picture)


def resize_fast(picture: Image.Image | np.ndarray, hw: tuple[int, int]) -> np.ndarray:
    """uint8 [height, width, 3] by torch's antialiased bicubic on uint8: about three times as fast as `resize_exact`.

    On photographs the two differ by 0.010 grey levels in the mean (bench/RESULTS.md, preprocess-fidelity), at most by
    2, except where Pillow (since 13) resizes the height before the width: there the rounding between the two passes
    falls differently, up to 8 levels in one value of 7,000.
    """
    pixels = np.asarray(picture)
    if pixels.shape[:2] == tuple(hw):
        return pixels
    if not pixels.flags.writeable:
        pixels = pixels.copy()  # torch wants writable memory to view, though nothing is written
    # [1, 3, H, W] as a view of the interleaved pixels: channels-last memory takes torch's vectorised kernel
    planes = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    resized = torch.nn.functional.interpolate(planes, size=hw, mode="bicubic", antialias=True, align_corners=False)
    return resized[0].permute(1, 2, 0).numpy()
