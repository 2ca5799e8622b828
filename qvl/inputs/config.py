"""Everything that decides how a conversation becomes numbers.

Knows: the options and what goes together. Does not know: how they are carried out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from qvl.media.resize import Geometry, PixelBudget
from qvl.media.video import VideoBudget
from qvl.text.family import QWEN_VL, Family

ChatFormatName = Literal["chatml", "raw"]
Resize = Literal["exact", "fast"]


@dataclass(frozen=True)
class Square:
    """How Qwen-VL sees: every picture, whatever its shape, becomes the same square and the same number of tokens."""

    side: int = 448
    """Pixels; 224 in the first training stage."""
    slots: int = 256
    """Tokens per picture: the queries of the model's adapter, a square number."""

    def __post_init__(self) -> None:
        if self.side < 1:
            raise ValueError(f"a picture of side {self.side} has no pixels; Qwen-VL uses 224 and 448")
        if self.slots < 1 or math.isqrt(self.slots) ** 2 != self.slots:
            raise ValueError(
                f"slots={self.slots} is not a square number; the adapter's queries lie on a square grid (64, 144, 256)"
            )


@dataclass(frozen=True)
class ProcessorConfig:
    """The defaults are Qwen2-VL's; `ProcessorConfig.qwen_vl()` makes Qwen-VL's."""

    geometry: Geometry = field(default_factory=Geometry)
    pixels: PixelBudget = field(default_factory=PixelBudget)
    """Bounds of one picture, unless the message sets its own. Qwen-VL: without effect."""
    video: VideoBudget = field(default_factory=VideoBudget)
    """Qwen-VL: without effect, it has no videos."""
    chat_format: ChatFormatName = "chatml"
    resize: Resize = "exact"
    """`exact` = Pillow, the reference; `fast` = torch uint8, several times faster. On photographs the two differ by
    0.01 grey levels on average and by 8 at most (`bench/preprocess.py` measures it)."""
    rope_axes: Literal[1, 3] = 3
    square: Square | None = None
    """Set for Qwen-VL; None = pictures keep their shape (Qwen2-VL)."""

    def __post_init__(self) -> None:
        if self.square is None:
            return
        g = self.geometry
        if (g.merge, g.temporal, self.rope_axes) != (1, 1, 1):
            raise ValueError(
                f"square pictures (Qwen-VL) need merge 1, temporal 1 and 1 rope axis, got merge {g.merge}, temporal "
                f"{g.temporal} and {self.rope_axes}; ProcessorConfig.qwen_vl() sets them"
            )
        if self.square.side % g.patch:
            raise ValueError(
                f"side {self.square.side} is not a multiple of the patch of {g.patch} pixels; the nearest is "
                f"{max(1, round(self.square.side / g.patch)) * g.patch}"
            )

    @classmethod
    def qwen_vl(
        cls,
        side: int = 448,
        slots: int = 256,
        *,
        patch: int = 14,
        chat_format: ChatFormatName = "chatml",
        resize: Resize = "exact",
    ) -> ProcessorConfig:
        """Qwen-VL's: squares of `side` pixels, `slots` tokens each, positions on one axis.

        Raises:
            ValueError: a side that is not a multiple of the patch, slots that are not a square number.
        """
        return cls(
            geometry=Geometry(patch=patch, merge=1, temporal=1),
            chat_format=chat_format,
            resize=resize,
            rope_axes=1,
            square=Square(side, slots),
        )

    @classmethod
    def of_family(cls, family: Family) -> ProcessorConfig:
        """The published settings of a family."""
        return cls.qwen_vl() if family is QWEN_VL else cls()
