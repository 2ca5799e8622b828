"""What training never sees: pairs of concepts and layouts that belong to dev or test.

Knows: which split a pair of concepts and a layout of the first object belong to.
Does not know: how scenes are drawn.

Pairs: the concepts, in an order shuffled once and for all, are cut into blocks of about 5 %. Two concepts of one
block are a dev pair. Numbered modulo the number of blocks, two concepts of one residue are a test pair. Neighbours in
a block have different residues, so no pair is both; about 10 % of all pairs are held out, every concept occurs in
both, and a block of g concepts gives scenes of up to g objects made of held-out pairs only.
"""

from __future__ import annotations

import hashlib

import numpy as np

from qvl.data.world.catalogue import Concept
from qvl.data.world.config import Split

LAYOUT_CELLS = 40
"""Per side: so fine that the held-out layouts lie all over the picture, and no place is likelier in a test."""
LAYOUT_SIZES = 4
HELD_OUT_SHARE = 20
"""One layout in 20 belongs to dev, another one to test."""


class HeldOut:
    def __init__(self, concepts: tuple[Concept, ...], max_objects: int):
        count = len(concepts)
        blocks = count // max(3, max_objects, round(count / 20))
        by_hash = sorted(range(count), key=lambda i: hashlib.sha256(f"pair {concepts[i].key}".encode()).digest())
        rank = np.empty(count, dtype=np.int64)
        rank[by_hash] = np.arange(count)
        self._dev = rank * blocks // count
        self._test = rank % blocks
        self._layouts = _layout_splits()

    def split_of_pair(self, a: int, b: int) -> Split:
        """`a`, `b`: different positions in the world's concepts, in any order."""
        if self._dev[a] == self._dev[b]:
            return "dev"
        return "test" if self._test[a] == self._test[b] else "train"

    def split_of_layout(self, centre_y: float, centre_x: float, size: float) -> Split:
        """Of the first object: its centre relative to the scene and its longest side relative to the short side."""
        row = min(int(centre_y * LAYOUT_CELLS), LAYOUT_CELLS - 1)
        column = min(int(centre_x * LAYOUT_CELLS), LAYOUT_CELLS - 1)
        bucket = min(int(size * 10), 2 * LAYOUT_SIZES - 1) // 2
        return self._layouts[(row * LAYOUT_CELLS + column) * LAYOUT_SIZES + bucket]

    def draw_concepts(
        self, split: Split, count: int, rng: np.random.Generator, include: int | None = None
    ) -> list[int]:
        """Up to `count` different concepts all of whose pairs belong to `split`, `include` among them if given.

        Train always gives `count`; dev and test fewer where a block is smaller than that.
        """
        anchor = int(rng.integers(len(self._dev))) if include is None else include
        if split == "train":
            candidates = rng.integers(len(self._dev), size=8 * count)
        else:
            labels = self._dev if split == "dev" else self._test
            candidates = rng.permutation(np.flatnonzero(labels == labels[anchor]))
        chosen = [anchor]
        while len(chosen) < count:
            for candidate in candidates.tolist():
                if len(chosen) == count:
                    break
                if candidate not in chosen and all(self.split_of_pair(candidate, c) == split for c in chosen):
                    chosen.append(candidate)
            if split != "train":
                break
            candidates = rng.integers(len(self._dev), size=64)
        if include is not None:
            rng.shuffle(chosen)
        return chosen


def _layout_splits() -> list[Split]:
    total = LAYOUT_CELLS**2 * LAYOUT_SIZES
    order = np.random.default_rng(20240918).permutation(total)
    held = total // HELD_OUT_SHARE
    splits: list[Split] = ["train"] * total
    for i in order[:held]:
        splits[i] = "dev"
    for i in order[held : 2 * held]:
        splits[i] = "test"
    return splits
