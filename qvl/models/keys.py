"""How one of our parameters is made of official checkpoint tensors, and how it is taken apart again.

Knows: fusing along rows, reshaping, names with a layer number.
Does not know: files, any particular model (each model's `keymap` holds its table).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from torch import Tensor

Table = tuple[tuple[str, tuple[str, ...]], ...]
"""Rows of (our name, official names); `{}` stands for a layer number."""


@dataclass(frozen=True)
class Part:
    """One official tensor."""

    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Entry:
    """Our parameter `ours` = its parts, each flattened to `[rows, values per row]`, one below the other.

    Example: `decoder.layers.0.qkv.weight [512, 384]` = q_proj `[384, 384]` over k_proj `[64, 384]` over v_proj;
    `visual.patch_embed.weight [E, 1176]` = one part, the convolution kernel `[E, 3, 2, 14, 14]`.
    """

    ours: str
    shape: tuple[int, ...]
    parts: tuple[Part, ...]

    def __post_init__(self) -> None:
        rows = sum(p.shape[0] for p in self.parts)
        values = {prod(p.shape[1:]) for p in self.parts}
        assert rows == self.shape[0], f"{self.ours}: {self.shape[0]} rows, its parts have {rows}"
        assert values == {prod(self.shape[1:])}, f"{self.ours}: rows of {self.shape[1:]} values, its parts {values}"

    def views(self, ours: Tensor) -> Iterator[tuple[Part, Tensor]]:
        """Each part with the rows of `ours` that it fills, in its official shape (a view: write or read it)."""
        assert tuple(ours.shape) == self.shape, f"{self.ours} must be {self.shape}, got {tuple(ours.shape)}"
        start = 0
        for part in self.parts:
            yield part, ours[start : start + part.shape[0]].view(part.shape)
            start += part.shape[0]


def expand(table: Table, layers: int) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The table's rows with `{}` replaced by 0 .. layers - 1; rows without `{}` come once."""
    for ours, official in table:
        if "{}" not in ours:
            yield ours, official
            continue
        for i in range(layers):
            yield ours.format(i), tuple(name.format(i) for name in official)
