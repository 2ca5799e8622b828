"""From a source to patch rows, with the time each phase took.

Knows: the order open -> size -> resize -> patchify, and which option wins.
Does not know: conversations, tokens, models.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from qvl.media.image import MAX_SOURCE_PIXELS, image_hw, open_image
from qvl.media.patches import Grid, grid_of, patchify
from qvl.media.resize import Geometry, PixelBudget, resize_exact, resize_fast, target_hw

Resize = Literal["exact", "fast"]


@dataclass(frozen=True)
class Visual:
    """One picture or video, ready for the vision tower."""

    patches_PC: Tensor
    """float32 [P, C] normalised rows in merge order."""
    grid: Grid
    """(t, h, w) in patches."""
    original_hw: tuple[int, int]
    """(height, width) in pixels as given (upright)."""
    resized_hw: tuple[int, int]
    """(height, width) in pixels that the model sees."""
    timestamps: tuple[float, ...] = ()
    """Video: seconds of each frame kept. Picture: ()."""
    ms: Mapping[str, float] = field(default_factory=dict)
    """Milliseconds per phase: decode, resize, patchify."""


def load_image(
    source: Any,
    *,
    min_pixels: float | None = None,
    max_pixels: float | None = None,
    resized_height: float | None = None,
    resized_width: float | None = None,
    geometry: Geometry,
    budget: PixelBudget,
    resize: Resize = "exact",
    max_source_pixels: int = MAX_SOURCE_PIXELS,
    out: Tensor | None = None,
) -> Visual:
    """Opens, resizes and cuts up one picture.

    `resize="exact"` gives the bits of transformers' image processor, `"fast"` trades a few grey levels for speed.
    `out`: float32 [P, C] rows to write into (`image_grid` says how many), a slice of a batch's buffer.

    Raises: FileNotFoundError, ValueError: see `open_image`, `target_hw`.
    """
    resizer = _resizer(resize)
    start = time.perf_counter()
    picture = open_image(source, max_source_pixels=max_source_pixels)
    decoded = time.perf_counter()
    original_hw = (picture.height, picture.width)
    hw = target_hw(
        original_hw,
        geometry=geometry,
        budget=budget,
        min_pixels=min_pixels,
        max_pixels=max_pixels,
        resized_height=resized_height,
        resized_width=resized_width,
    )
    pixels = resizer(picture, hw)
    resized = time.perf_counter()
    patches_PC, grid = patchify(pixels[None], geometry, out)
    done = time.perf_counter()
    ms = {"decode": decoded - start, "resize": resized - decoded, "patchify": done - resized}
    return Visual(patches_PC, grid, original_hw, hw, (), {k: 1000 * v for k, v in ms.items()})


def image_grid(
    hw: tuple[int, int],
    *,
    min_pixels: float | None = None,
    max_pixels: float | None = None,
    resized_height: float | None = None,
    resized_width: float | None = None,
    geometry: Geometry,
    budget: PixelBudget,
) -> Grid:
    """Grid (1, h, w) in patches of a picture of `hw` pixels, without touching pixels (planning)."""
    resized = target_hw(
        hw,
        geometry=geometry,
        budget=budget,
        min_pixels=min_pixels,
        max_pixels=max_pixels,
        resized_height=resized_height,
        resized_width=resized_width,
    )
    return grid_of(1, resized, geometry)


def image_file_grid(source: Any, **options: Any) -> Grid:
    """`image_grid` of a picture whose size is read from its header; options as in `image_grid`."""
    return image_grid(image_hw(source), **options)


def _resizer(name: Resize):
    resizers = {"exact": resize_exact, "fast": resize_fast}
    if name not in resizers:
        raise ValueError(f"resize must be one of {', '.join(resizers)}, got {name!r}")
    return resizers[name]
