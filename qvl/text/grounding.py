"""Grounding markup <-> labelled boxes, and the one object that converts box coordinates.

Knows: how Qwen2-VL writes places in text (`<|object_ref_start|>the eyes on a giraffe<|object_ref_end|>`
directly followed by `<|box_start|>(176,106),(232,160)<|box_end|>`; coordinates in [0, 1000), relative to the
picture; arXiv 2409.12191, data formats).
Does not know: token ids, pictures, overlap metrics.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Box = tuple[int, int, int, int]
"""x1, y1, x2, y2 with x1 <= x2 and y1 <= y2."""

Quad = tuple[tuple[int, int], tuple[int, int], tuple[int, int], tuple[int, int]]
"""Four (x, y) corners in the order they were written."""

_SCALE = 1000
_MARK = re.compile(r"<\|(object_ref|box|quad)_(start|end)\|>")
_POINT = r"\(([0-9]{1,4}),\s?([0-9]{1,4})\)"
_BOX_BODY = re.compile(rf"\s?{_POINT},\s?{_POINT}\s?")
_QUAD_BODY = re.compile(rf"\s?{_POINT},\s?{_POINT},\s?{_POINT},\s?{_POINT}\s?")
_LONGEST_BODY = 64
"""No well-formed place is longer; longer ones are not even looked at."""


@dataclass(frozen=True)
class Grounded:
    """A label and the places it names; the label is empty where the text gave none."""

    label: str
    boxes_1000: tuple[Box, ...]
    quads_1000: tuple[Quad, ...] = ()


def ref(text: str) -> str:
    """`<|object_ref_start|>text<|object_ref_end|>`.

    Raises:
        ValueError: the text holds grounding marks itself.
    """
    if mark := _MARK.search(text):
        raise ValueError(f"a label must be plain text, but {text!r} holds {mark.group()!r}")
    return f"<|object_ref_start|>{text}<|object_ref_end|>"


def box(box_1000: Sequence[int]) -> str:
    """`<|box_start|>(x1,y1),(x2,y2)<|box_end|>` of one box in [0, 999].

    Raises:
        ValueError: not four integers in [0, 999], or corners in the wrong order.
    """
    if len(box_1000) != 4 or not all(map(_is_coordinate, box_1000)):
        raise ValueError(f"a box is four integers x1, y1, x2, y2 in [0, {_SCALE - 1}], got {tuple(box_1000)}")
    x1, y1, x2, y2 = box_1000
    if x2 < x1 or y2 < y1:
        raise ValueError(f"box {tuple(box_1000)} has x2 < x1 or y2 < y1; the upper left corner comes first")
    return f"<|box_start|>({x1},{y1}),({x2},{y2})<|box_end|>"


def quad(points_1000: Sequence[Sequence[int]]) -> str:
    """`<|quad_start|>(x,y),(x,y),(x,y),(x,y)<|quad_end|>` of four corners in [0, 999].

    Raises:
        ValueError: not four points of two integers in [0, 999].
    """
    if len(points_1000) != 4 or not all(len(p) == 2 and all(map(_is_coordinate, p)) for p in points_1000):
        raise ValueError(f"a quad is four (x, y) points of integers in [0, {_SCALE - 1}], got {points_1000!r}")
    return "<|quad_start|>" + ",".join(f"({x},{y})" for x, y in points_1000) + "<|quad_end|>"


def _is_coordinate(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _SCALE


def parse_grounding(text: str) -> list[Grounded]:
    """Reads the places in a model's reply, in order; skips what is malformed and never raises.

    A box or quad belongs to the last label that was closed before it, or to the label "" before any. Labels
    without a place are left out. Skipped: a start without its end (a later start wins), bodies that are not
    coordinates, x2 < x1 or y2 < y1, coordinates over 1000. Exactly 1000, the far edge, reads as 999. The
    label is verbatim (Qwen-VL writes a leading space inside it). Linear in the length of the text.

    >>> parse_grounding("<|object_ref_start|>a cat<|object_ref_end|><|box_start|>(1,2),(30,40)<|box_end|>")
    [Grounded(label='a cat', boxes_1000=((1, 2, 30, 40),), quads_1000=())]
    """
    found: list[tuple[str, list[Box], list[Quad]]] = [("", [], [])]
    opened, body_start = "", 0
    for mark in _MARK.finditer(text):
        kind, edge = mark.groups()
        if edge == "start":
            opened, body_start = kind, mark.end()
            continue
        if kind == opened:
            body = text[body_start : mark.start()]
            if kind == "object_ref":
                found.append((body, [], []))
            elif kind == "box":
                found[-1][1].extend(_read_box(body))
            else:
                found[-1][2].extend(_read_quad(body))
        opened = ""
    return [Grounded(label, tuple(boxes), tuple(quads)) for label, boxes, quads in found if boxes or quads]


def _read_numbers(pattern: re.Pattern[str], body: str) -> list[int] | None:
    match = pattern.fullmatch(body) if len(body) <= _LONGEST_BODY else None
    if match is None:
        return None
    numbers = [int(group) for group in match.groups()]
    return None if max(numbers) > _SCALE else [min(n, _SCALE - 1) for n in numbers]


def _read_box(body: str) -> list[Box]:
    numbers = _read_numbers(_BOX_BODY, body)
    if numbers is None:
        return []
    x1, y1, x2, y2 = numbers
    return [(x1, y1, x2, y2)] if x1 <= x2 and y1 <= y2 else []


def _read_quad(body: str) -> list[Quad]:
    n = _read_numbers(_QUAD_BODY, body)
    return [] if n is None else [((n[0], n[1]), (n[2], n[3]), (n[4], n[5]), (n[6], n[7]))]


def plain_text(text: str) -> str:
    """The text a reader wants: labels stay, places and marks go.

    Only coordinates between a matching start and end go; a malformed place keeps its words, not its marks.
    """
    pieces: list[str] = []
    end, opened = 0, ""
    for mark in _MARK.finditer(text):
        kind, edge = mark.groups()
        body = text[end : mark.start()]
        closes_place = edge == "end" and kind == opened and kind != "object_ref"
        pattern = _BOX_BODY if kind == "box" else _QUAD_BODY
        if not (closes_place and len(body) <= _LONGEST_BODY and pattern.fullmatch(body)):
            pieces.append(body)
        opened = kind if edge == "start" else ""
        end = mark.end()
    return "".join(pieces) + text[end:]


@dataclass(frozen=True)
class Coordinates:
    """One picture's three frames of reference: as given, as the model saw it, and the 0..999 of its text.

    Used by loader, metric, reply and viewer alike, so that they cannot disagree. Sizes are (height, width) in
    pixels. Relative coordinates are those of the whole picture, so resizing does not touch them.
    """

    original_hw: tuple[int, int]
    resized_hw: tuple[int, int]
    scale: int = _SCALE
    format: Literal["relative"] = "relative"

    def __post_init__(self) -> None:
        if min(*self.original_hw, *self.resized_hw) < 1:
            raise ValueError(f"picture sizes must be positive: original {self.original_hw}, resized {self.resized_hw}")

    def box_px_to_1000(self, box_px: Sequence[float]) -> Box:
        """A box in original pixels -> integers in [0, 999], rounded, the far edge clamped to 999.

        Raises:
            ValueError: not four finite numbers, corners in the wrong order, or a box outside the picture.
        """
        height, width = self.original_hw
        values = tuple(box_px)
        if len(values) != 4 or not all(math.isfinite(v) for v in values):
            raise ValueError(f"a box is four finite numbers x1, y1, x2, y2, got {values}")
        x1, y1, x2, y2 = values
        if x2 < x1 or y2 < y1:
            raise ValueError(f"box {values} has x2 < x1 or y2 < y1; the upper left corner comes first")
        if x1 < 0 or y1 < 0 or x2 > width or y2 > height:
            raise ValueError(f"box {values} leaves the picture of width {width} and height {height}; clip it first")
        top = self.scale - 1
        u1, v1 = (min(top, _round(c * self.scale / side)) for c, side in ((x1, width), (y1, height)))
        u2, v2 = (min(top, _round(c * self.scale / side)) for c, side in ((x2, width), (y2, height)))
        return u1, v1, u2, v2

    def box_1000_to_px(self, box_1000: Sequence[float]) -> Box:
        """A box in 0..1000 -> whole pixels of the original picture, clipped to it.

        There and back again costs at most one unit of the coarser of the two grids.
        """
        return self._to_px(box_1000, self.original_hw)

    def box_1000_to_resized_px(self, box_1000: Sequence[float]) -> Box:
        """A box in 0..1000 -> whole pixels of the resized picture, clipped to it (for viewers)."""
        return self._to_px(box_1000, self.resized_hw)

    def _to_px(self, box_1000: Sequence[float], hw: tuple[int, int]) -> Box:
        height, width = hw
        x1, y1, x2, y2 = (
            min(side, max(0, _round(c * side / self.scale)))
            for c, side in zip(box_1000, (width, height, width, height), strict=True)
        )
        return x1, y1, x2, y2


def _round(value: float) -> int:
    """Halves go up: unlike Python's banker's rounding, equal steps stay equal."""
    return math.floor(value + 0.5)
