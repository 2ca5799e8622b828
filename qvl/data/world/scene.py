"""Scenes: cut-outs on a background, with exact boxes.

Knows: how a scene is laid out and composed; a box is the tight bound of the pasted cut-out's alpha.
Does not know: questions, languages, messages.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
from PIL import Image

from qvl.data.world.catalogue import Catalogue, Concept

ALPHA_THRESHOLD = 64
"""A pixel belongs to an object's box when its alpha is above this (of 255)."""
SIZE_STEP = 4
"""Objects come in sizes that are multiples of this many pixels, so that cut-outs can be cached."""
BASE_PX = 128
CACHED_CUTOUTS = 4096
"""About 90 MB at the default sizes if all are in use."""

COLOURS: dict[str, tuple[str, tuple[int, int, int]]] = {
    "white": ("白色", (243, 243, 243)),
    "gray": ("灰色", (140, 140, 140)),
    "black": ("黑色", (28, 28, 28)),
    "red": ("红色", (205, 60, 55)),
    "orange": ("橙色", (240, 150, 60)),
    "yellow": ("黄色", (245, 225, 95)),
    "green": ("绿色", (95, 180, 95)),
    "blue": ("蓝色", (75, 125, 215)),
    "purple": ("紫色", (140, 85, 185)),
    "pink": ("粉色", (250, 180, 205)),
}
"""Name of a background -> (Chinese name, RGB)."""


@dataclass(frozen=True)
class Cutout:
    """A concept at one size: premultiplied uint8 colour, and 255 - alpha as uint16, repeated for each channel because
    broadcasting over three channels is several times slower."""

    colour_HW3: np.ndarray
    keep_HW3: np.ndarray
    box_px: tuple[int, int, int, int]
    """xyxy of alpha > ALPHA_THRESHOLD, relative to the cut-out."""


@dataclass(frozen=True)
class Placed:
    """An object in a scene."""

    concept: Concept
    box_px: tuple[int, int, int, int]
    """xyxy, exclusive right and bottom, exact from alpha."""

    @property
    def area_px(self) -> int:
        x1, y1, x2, y2 = self.box_px
        return (x2 - x1) * (y2 - y1)


@dataclass(frozen=True)
class Scene:
    """A picture and all that is true about it."""

    pixels_HW3: np.ndarray
    objects: tuple[Placed, ...]
    background: str
    """A name of COLOURS, or "photo"."""
    layout: tuple[float, float, float]
    """(centre y, centre x, size) of the first object, as `HeldOut.split_of_layout` wants them."""

    @property
    def hw(self) -> tuple[int, int]:
        return self.pixels_HW3.shape[0], self.pixels_HW3.shape[1]

    def centre(self, placed: Placed) -> tuple[float, float]:
        """(y, x) of the box's centre relative to the scene, 0..1."""
        x1, y1, x2, y2 = placed.box_px
        height, width = self.hw
        return (y1 + y2) / 2 / height, (x1 + x2) / 2 / width


class Cutouts:
    """Premultiplied, resized pictures of concepts; the last few thousand are kept.

    Small ones are made from a copy of at most BASE_PX pixels that is kept for every concept that was ever used
    (64 KB each), so that a miss costs a small resize and not the decoding of the full picture.
    """

    def __init__(self, catalogue: Catalogue):
        self._catalogue = catalogue
        self._bases: dict[str, Image.Image] = {}
        self._cache: OrderedDict[tuple[str, int], Cutout] = OrderedDict()

    def get(self, concept: Concept, size_px: int) -> Cutout:
        """The concept with its longest side `size_px` pixels."""
        key = concept.key, size_px
        if key in self._cache:
            self._cache.move_to_end(key)
            return self._cache[key]
        cutout = self._make(concept, size_px)
        self._cache[key] = cutout
        if len(self._cache) > CACHED_CUTOUTS:
            self._cache.popitem(last=False)
        return cutout

    def _make(self, concept: Concept, size_px: int) -> Cutout:
        small = np.asarray(_resized(self._base(concept) if size_px <= BASE_PX else self._full(concept), size_px))
        keep = np.repeat(255 - small[..., 3:].astype(np.uint16), 3, axis=2)
        return Cutout(np.ascontiguousarray(small[..., :3]), keep, alpha_box(small[..., 3]))

    def _base(self, concept: Concept) -> Image.Image:
        if concept.key not in self._bases:
            self._bases[concept.key] = _resized(self._full(concept), BASE_PX)
        return self._bases[concept.key]

    def _full(self, concept: Concept) -> Image.Image:
        """Premultiplied (resizing straight alpha would bleed transparent pixels into edges) and cropped."""
        rgba = self._catalogue.rgba(concept)
        return Image.fromarray(rgba).convert("RGBa").crop(alpha_box(rgba[..., 3]))


def _resized(picture: Image.Image, size_px: int) -> Image.Image:
    """Longest side `size_px`. The filter has no negative lobes, so colour never exceeds alpha."""
    scale = size_px / max(picture.size)
    width, height = (max(1, round(side * scale)) for side in picture.size)
    return picture.resize((width, height), Image.Resampling.HAMMING)


def alpha_box(alpha_HW: np.ndarray) -> tuple[int, int, int, int]:
    """Tight xyxy bounds (exclusive right and bottom) of alpha > ALPHA_THRESHOLD."""
    solid = alpha_HW > ALPHA_THRESHOLD
    rows, columns = np.flatnonzero(solid.any(1)), np.flatnonzero(solid.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def paste(pixels_HW3: np.ndarray, cutout: Cutout, top: int, left: int) -> None:
    """Composes the cut-out over the picture, in place; it must lie inside."""
    height, width = cutout.keep_HW3.shape[:2]
    region = pixels_HW3[top : top + height, left : left + width]
    rest = region * cutout.keep_HW3
    rest += 128
    rest += rest >> 8
    rest >>= 8  # (t + (t >> 8)) >> 8 with t = x + 128 is x / 255, rounded, for every x up to 255 * 255
    region[...] = cutout.colour_HW3 + rest.astype(np.uint8)
