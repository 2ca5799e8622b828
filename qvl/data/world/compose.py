"""Draws scenes: size, background, concepts, places.

Knows: the config's ranges and what each split may show.
Does not know: questions.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from PIL import Image

from qvl.data.world.catalogue import Catalogue, Concept
from qvl.data.world.config import Split, WorldConfig
from qvl.data.world.heldout import HeldOut
from qvl.data.world.scene import COLOURS, SIZE_STEP, Cutouts, Placed, Scene, paste

_NAMES = tuple(COLOURS)
_CROWDED = (1.0, 0.85, 0.72, 0.62, 0.55, 0.5)
"""Largest object size by number of objects, relative to the config's: more objects are smaller ones."""


class Composer:
    def __init__(self, config: WorldConfig, catalogue: Catalogue):
        self.config = config
        self.concepts: tuple[Concept, ...] = catalogue.objects[: config.concepts]
        if len(self.concepts) < config.concepts:
            raise ValueError(f"concepts is {config.concepts}, but there are only {len(self.concepts)} objects")
        self.held_out = HeldOut(self.concepts, len(config.objects))
        self.cutouts = Cutouts(catalogue)
        weights = np.asarray(config.objects, dtype=np.float64)
        self._counts = np.cumsum(weights / weights.sum())

    def draw(self, split: Split, rng: np.random.Generator, *, repeat: bool | None = None) -> Scene:
        """One scene of the split. `repeat`: show one concept several times (None: as often as the config says)."""
        if repeat is None:
            repeat = rng.random() < self.config.repeats
        count = 1 + int(np.searchsorted(self._counts, rng.random(), side="right"))
        hw = self._size(rng)
        if repeat:
            kinds = self.held_out.draw_concepts(split, 1 if rng.random() < 0.5 else 2, rng)
            indices = kinds[:1] * int(rng.integers(2, 5)) + kinds[1:]
        else:
            indices = self.held_out.draw_concepts(split, min(count, len(self._counts)), rng)
        placed = None
        while placed is None:
            placed = self._place(split, [self.concepts[i] for i in indices], hw, rng)
            if placed is None and rng.random() < 0.2 and len(indices) > 1 + repeat:
                indices = indices[:-1]
        pixels, background = self._background(hw, rng)
        objects = []
        for concept, size, top, left in placed:
            cutout = self.cutouts.get(concept, size)
            paste(pixels, cutout, top, left)
            x1, y1, x2, y2 = cutout.box_px
            objects.append(Placed(concept, (left + x1, top + y1, left + x2, top + y2)))
        return Scene(pixels, tuple(objects), background, self._layout(objects[0], placed[0][1], hw))

    def _size(self, rng: np.random.Generator) -> tuple[int, int]:
        if not self.config.any_size:
            return self.config.sizes[int(rng.integers(len(self.config.sizes)))]
        areas = [h * w for h, w in self.config.sizes]
        area = rng.uniform(min(areas), max(areas))
        ratio = 3.0 ** rng.uniform(-1, 1)
        return max(56, round((area * ratio) ** 0.5)), max(56, round((area / ratio) ** 0.5))

    def _place(
        self, split: Split, concepts: list[Concept], hw: tuple[int, int], rng: np.random.Generator
    ) -> list[tuple[Concept, int, int, int]] | None:
        """(concept, size, top, left) of each object, or None if they did not fit this time."""
        height, width = hw
        low, high = self.config.object_size
        high = max(low, high * _CROWDED[min(len(concepts), len(_CROWDED)) - 1])
        short = min(hw)
        placed: list[tuple[Concept, int, int, int]] = []
        boxes: list[tuple[int, int, int, int]] = []
        for concept in concepts:
            for _ in range(12 if placed else 400):
                size = max(SIZE_STEP, round(rng.uniform(low, high) * short / SIZE_STEP) * SIZE_STEP)
                cutout = self.cutouts.get(concept, size)
                h, w = cutout.keep_HW1.shape[:2]
                top, left = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
                x1, y1, x2, y2 = cutout.box_px
                box = left + x1, top + y1, left + x2, top + y2
                if not placed:
                    layout = self._layout(Placed(concept, box), size, hw)
                    if self.held_out.split_of_layout(*layout) != split:
                        continue
                elif any(_overlap(box, other) > self.config.max_overlap for other in boxes):
                    continue
                placed.append((concept, size, top, left))
                boxes.append(box)
                break
            else:
                return None
        return placed

    def _layout(self, first: Placed, size_px: int, hw: tuple[int, int]) -> tuple[float, float, float]:
        x1, y1, x2, y2 = first.box_px
        return (y1 + y2) / 2 / hw[0], (x1 + x2) / 2 / hw[1], size_px / min(hw)

    def _background(self, hw: tuple[int, int], rng: np.random.Generator) -> tuple[np.ndarray, str]:
        """(uint8 [H, W, 3], name of the background)."""
        height, width = hw
        if self.config.photos and rng.random() < self.config.photo_share:
            return _photo_crop(_photo(self.config.photos[int(rng.integers(len(self.config.photos)))]), hw, rng), "photo"
        name = _NAMES[int(rng.integers(len(_NAMES)))]
        colour = np.asarray(COLOURS[name][1], dtype=np.float32) + rng.uniform(-10, 10, 3).astype(np.float32)
        if rng.random() >= self.config.gradients:
            return np.full((height, width, 3), np.clip(colour, 0, 255).astype(np.uint8)), name
        angle = rng.uniform(0, 2 * np.pi)
        y = np.linspace(-1, 1, height, dtype=np.float32)[:, None] * np.float32(np.sin(angle))
        x = np.linspace(-1, 1, width, dtype=np.float32)[None] * np.float32(np.cos(angle))
        slope = rng.uniform(8, 22) * np.asarray([1, 1, 1], dtype=np.float32)
        return np.clip(colour + (y + x)[..., None] * slope, 0, 255).astype(np.uint8), name


def _overlap(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> float:
    """Shared area relative to the smaller box."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    return width * height / min((a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1]))


@lru_cache(maxsize=64)
def _photo(path: str) -> Image.Image:
    with Image.open(path) as picture:
        return picture.convert("RGB")


def _photo_crop(photo: Image.Image, hw: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    height, width = hw
    scale = min(photo.height / height, photo.width / width) * rng.uniform(0.5, 1)
    h, w = height * scale, width * scale
    top, left = rng.uniform(0, photo.height - h), rng.uniform(0, photo.width - w)
    box = (left, top, left + w, top + h)
    return np.array(photo.resize((width, height), Image.Resampling.BILINEAR, box=box))
