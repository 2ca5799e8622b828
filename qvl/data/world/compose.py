"""Draws scenes: size, background, concepts, places.

Knows: the config's ranges and what each split may show.
Does not know: questions.
"""

from __future__ import annotations

from bisect import bisect_right
from functools import lru_cache

import numpy as np
from PIL import Image

from qvl.data.world.catalogue import Catalogue, Concept
from qvl.data.world.config import Split, WorldConfig
from qvl.data.world.heldout import HeldOut
from qvl.data.world.scene import COLOURS, SIZE_STEP, Cutouts, Placed, Scene, paste

_NAMES = tuple(COLOURS)
_ROUNDS = 64
_Place = tuple[Concept, int, int, int]
"""Concept, longest side, top, left."""
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
        self._counts: list[float] = np.cumsum(weights / weights.sum())[:-1].tolist()

    def draw(
        self,
        split: Split,
        rng: np.random.Generator,
        *,
        repeat: bool | None = None,
        include: int | None = None,
        pixels: bool = True,
    ) -> Scene:
        """One scene of the split.

        `repeat`: show one concept several times (None: as often as the config says). `include`: position of a
        concept that must be there. `pixels`: False leaves the picture empty (for scenes that are only told).

        Raises:
            ValueError: no layout of the split fits the config's object sizes.
        """
        if repeat is None:
            repeat = include is None and rng.random() < self.config.repeats
        count = self._draw_count(rng)
        hw = self.draw_size(rng)
        if repeat:
            kinds = self.held_out.draw_concepts(split, 1 if rng.random() < 0.5 else 2, rng)
            indices = kinds[:1] * int(rng.integers(2, 5)) + kinds[1:]
        else:
            indices = self.held_out.draw_concepts(split, count, rng, include)
        for attempt in range(_ROUNDS):
            placed = self._place(split, [self.concepts[i] for i in indices], hw, rng)
            if placed is not None:
                break
            if attempt % 4 == 3 and len(indices) > 1 + repeat:
                indices = indices[:-1] if indices[-1] != include else indices[1:]
        else:
            raise ValueError(
                f"no {split} layout of {len(indices)} objects fits a {hw[0]} x {hw[1]} scene with object_size "
                f"{self.config.object_size} and max_overlap {self.config.max_overlap}; widen object_size"
            )
        return self._compose(placed, hw, rng, pixels)

    def _compose(self, placed: list[_Place], hw: tuple[int, int], rng: np.random.Generator, visible: bool) -> Scene:
        pixels, background = self.background(hw, rng)
        objects = []
        for concept, size, top, left in placed:
            cutout = self.cutouts.get(concept, size)
            if visible:
                paste(pixels, cutout, top, left)
            x1, y1, x2, y2 = cutout.box_px
            objects.append(Placed(concept, (left + x1, top + y1, left + x2, top + y2)))
        return Scene(pixels, tuple(objects), background, self.layout(objects[0].box_px, placed[0][1], hw))

    def _draw_count(self, rng: np.random.Generator) -> int:
        return 1 + bisect_right(self._counts, rng.random())

    def draw_size(self, rng: np.random.Generator) -> tuple[int, int]:
        if not self.config.any_size:
            return self.config.sizes[int(rng.integers(len(self.config.sizes)))]
        areas = [h * w for h, w in self.config.sizes]
        area = rng.uniform(min(areas), max(areas))
        ratio = 3.0 ** rng.uniform(-1, 1)
        return max(56, round((area * ratio) ** 0.5)), max(56, round((area / ratio) ** 0.5))

    def _place(
        self, split: Split, concepts: list[Concept], hw: tuple[int, int], rng: np.random.Generator
    ) -> list[_Place] | None:
        """(concept, size, top, left) of each object, or None if they did not fit this time."""
        height, width = hw
        low, high = self.config.object_size
        high = max(low, high * _CROWDED[min(len(concepts), len(_CROWDED)) - 1])
        short = min(hw)
        placed: list[_Place] = []
        boxes: list[tuple[int, int, int, int]] = []
        for concept in concepts:
            for _ in range(12 if placed else 400):
                size = max(SIZE_STEP, round(rng.uniform(low, high) * short / SIZE_STEP) * SIZE_STEP)
                cutout = self.cutouts.get(concept, size)
                h, w = cutout.keep_HW3.shape[:2]
                top, left = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
                x1, y1, x2, y2 = cutout.box_px
                box = left + x1, top + y1, left + x2, top + y2
                if not placed:
                    layout = self.layout(box, size, hw)
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

    @staticmethod
    def layout(box_px: tuple[int, int, int, int], size_px: int, hw: tuple[int, int]) -> tuple[float, float, float]:
        """(centre y, centre x, size), relative, as `HeldOut.split_of_layout` wants them."""
        x1, y1, x2, y2 = box_px
        return (y1 + y2) / 2 / hw[0], (x1 + x2) / 2 / hw[1], size_px / min(hw)

    def background(self, hw: tuple[int, int], rng: np.random.Generator) -> tuple[np.ndarray, str]:
        """(uint8 [H, W, 3], name of the background)."""
        if self.config.photos and rng.random() < self.config.photo_share:
            return _photo_crop(_photo(self.config.photos[int(rng.integers(len(self.config.photos)))]), hw, rng), "photo"
        name = _NAMES[int(rng.integers(len(_NAMES)))]
        colour = [c + v for c, v in zip(COLOURS[name][1], rng.uniform(-10, 10, 3).tolist(), strict=True)]
        if rng.random() >= self.config.gradients:
            return _flat(hw, colour), name
        return _gradient(hw, colour, rng.uniform(0, 2 * np.pi), rng.uniform(8, 22)), name


def _flat(hw: tuple[int, int], colour: list[float]) -> np.ndarray:
    height, width = hw
    row = np.tile(np.clip(colour, 0, 255).astype(np.uint8), width).reshape(1, width, 3)
    return np.repeat(row, height, axis=0)


def _gradient(hw: tuple[int, int], colour: list[float], angle: float, slope: float) -> np.ndarray:
    """Brightness rises by up to +-`slope` along the sides; all channels together, so that the colour keeps its name."""
    height, width = hw
    down = np.linspace(-1, 1, height) * (slope * np.sin(angle))
    right = np.linspace(-1, 1, width) * (slope * np.cos(angle))
    row = (right[:, None] + np.asarray(colour)).reshape(1, width * 3).astype(np.int16)
    sums = down[:, None].astype(np.int16) + row  # int16 and one long row: five times faster than float32 [H, W, 3]
    return np.clip(sums, 0, 255, out=sums).astype(np.uint8).reshape(height, width, 3)


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
