"""How one of our parameters is made of official checkpoint tensors, and how it is taken apart again.

Knows: fusing along rows, reshaping, other orders of rows, names with a layer number.
Does not know: files, any particular model (each model's `keymap` holds its table).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Literal

from torch import Tensor, nn

Table = tuple[tuple[str, tuple[str, ...]], ...]
"""Rows of (our name, official names); `{}` stands for a layer number."""


@dataclass(frozen=True)
class Part:
    """One official tensor."""

    name: str
    shape: tuple[int, ...]
    layout: Literal["rows", "transposed", "per_head"] = "rows"
    """How the official tensor holds what we hold as rows. `per_head`: q, k, v of head 0, then q, k, v of head 1, ...
    where ours has all q, then all k, then all v."""
    heads: int = 1
    """For `per_head`."""

    @property
    def rows(self) -> int:
        """Rows of ours that it fills."""
        return self.shape[1] if self.layout == "transposed" else self.shape[0]

    def view(self, rows: Tensor) -> Tensor:
        """Our rows in the order of the official values (a view: write or read it)."""
        match self.layout:
            case "rows":
                return rows.view(self.shape)
            case "transposed":
                return rows.T
            case "per_head":
                return rows.unflatten(0, (3, self.heads, -1)).transpose(0, 1)


@dataclass(frozen=True)
class Entry:
    """Our parameter `ours` = its parts, each flattened to `[rows, values per row]`, one below the other.

    Examples: `decoder.layers.0.qkv.weight [512, 384]` = q_proj `[384, 384]` over k_proj `[64, 384]` over v_proj;
    `visual.patch_embed.weight [E, 1176]` = one part, the convolution kernel `[E, 3, 2, 14, 14]`.
    """

    ours: str
    shape: tuple[int, ...]
    parts: tuple[Part, ...]

    def __post_init__(self) -> None:
        rows = sum(p.rows for p in self.parts)
        values = {prod(p.shape) // p.rows for p in self.parts}
        assert rows == self.shape[0], f"{self.ours}: {self.shape[0]} rows, its parts have {rows}"
        assert values == {prod(self.shape[1:])}, f"{self.ours}: rows of {self.shape[1:]} values, its parts {values}"

    def views(self, ours: Tensor) -> Iterator[tuple[Part, Tensor]]:
        """Each part with a view of the values of `ours` that it is, in their official order.

        The view has the part's shape, or (`per_head`) its rows on several axes. Write it by
        `view.copy_(official.reshape(view.shape))`, read it by `view.reshape(part.shape)`.
        """
        assert tuple(ours.shape) == self.shape, f"{self.ours} must be {self.shape}, got {tuple(ours.shape)}"
        start = 0
        for part in self.parts:
            yield part, part.view(ours[start : start + part.rows])
            start += part.rows


def stored_tensors(model: nn.Module) -> dict[str, Tensor]:
    """What a checkpoint holds of a model: parameters (one that has two names once) and fixed tables, by our names."""
    return dict(model.named_parameters()) | dict(model.named_buffers())


def expand(table: Table, layers: int) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The table's rows with `{}` replaced by 0 .. layers - 1; rows without `{}` come once."""
    for ours, official in table:
        if "{}" not in ours:
            yield ours, official
            continue
        for i in range(layers):
            yield ours.format(i), tuple(name.format(i) for name in official)
