"""Sequences in a page store, without an engine: for tests of attention over pages."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from qvl.batch import Batch
from qvl.engine.paged import PagedContext, PagedStore, Row
from qvl.models.vlm import VisionLanguageModel


@dataclass
class Held:
    first: int
    """Length of the prompt."""
    tokens: int = 0
    pages: list[int] = field(default_factory=list)


class PagedRows:
    """Gives every sequence pages as it grows: scattered ones, or side by side."""

    def __init__(
        self, model: VisionLanguageModel, pages: int = 128, page_tokens: int = 8, scattered: bool = True
    ) -> None:
        weight = model.embed.weight
        self.store = PagedStore(model.config.text, pages, page_tokens, weight.dtype, weight.device)
        self._free = list(range(pages))[::-1]
        if scattered:
            random.Random(0).shuffle(self._free)

    def drop(self, held: Held) -> None:
        self._free += held.pages

    def ordered(self, who: Sequence[Held], counts: Sequence[int]) -> list[int]:
        """The order in which the store wants sequences that grow by `counts`."""
        rows = [self._row(held, n) for held, n in zip(who, counts, strict=True)]
        return sorted(range(len(rows)), key=lambda i: (rows[i].kind, -rows[i].held))

    def context(self, batch: Batch, who: Sequence[Held]) -> PagedContext:
        """Attention for a pass in which sequence s of the batch goes on with `who[s]`."""
        rows = [self._row(held, n) for held, n in zip(who, batch.seq_lens, strict=True)]
        for held, n in zip(who, batch.seq_lens, strict=True):
            held.tokens += n
        return self.store.context(batch, rows)

    def _row(self, held: Held, new: int) -> Row:
        while len(held.pages) * self.store.page_tokens < held.tokens + new:
            held.pages.append(self._free.pop())
        return Row(np.array(held.pages, np.int64), held.tokens, new, held.first)
