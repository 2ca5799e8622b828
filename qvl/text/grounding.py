"""Grounding markup <-> labelled boxes, and the one object that converts box coordinates.

Knows: how both families write places in text: a reference, directly followed by its place, coordinates in [0, 1000)
relative to the picture. Qwen2-VL (arXiv 2409.12191, data formats):
`<|object_ref_start|>the eyes on a giraffe<|object_ref_end|><|box_start|>(176,106),(232,160)<|box_end|>`; Qwen-VL
(arXiv 2308.12966, appendix B): `<ref>the eyes on a giraffe</ref><box>(176,106),(232,160)</box>`. What differs, the
marks, comes in as a `Markup`.
Does not know: token ids, pictures, overlap metrics.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Literal

from qvl.text.family import ANY_MARKUP, KINDS, QWEN2_VL, Kind, Mark, Markup

Box = tuple[int, int, int, int]
"""x1, y1, x2, y2 with x1 <= x2 and y1 <= y2."""

Quad = tuple[tuple[int, int], tuple[int, int], tuple[int, int], tuple[int, int]]
"""Four (x, y) corners in the order they were written."""

_SCALE = 1000
EVALUATION_DIVISOR = 999
"""What Qwen-VL's evaluation script divides coordinates by; its drawing code, like everything here, by 1000."""
_POINT = r"\(([0-9]{1,4}),\s?([0-9]{1,4})\)"
_BOX_BODY = re.compile(rf"\s?{_POINT},\s?{_POINT}\s?")
_QUAD_BODY = re.compile(rf"\s?{_POINT},\s?{_POINT},\s?{_POINT},\s?{_POINT}\s?")
_LONGEST_BODY = 64
"""No well-formed place is longer; longer ones are not even looked at."""
_INTEGER = re.compile(r"-?[0-9]+")
_ANY_POINTS = re.compile(r"\s?\(-?[0-9]+,\s?-?[0-9]+\)(?:,\s?\(-?[0-9]+,\s?-?[0-9]+\))*\s?")


@dataclass(frozen=True)
class Grounded:
    """A label and the places it names; the label is empty where the text gave none."""

    label: str
    boxes_1000: tuple[Box, ...]
    quads_1000: tuple[Quad, ...] = ()


def ref(text: str, markup: Markup = QWEN2_VL.markup) -> str:
    """`<|object_ref_start|>text<|object_ref_end|>`, or as `markup` spells it.

    Raises:
        ValueError: the text holds grounding marks itself.
    """
    if mark := next(ANY_MARKUP.find(text), None):
        raise ValueError(f"a label must be plain text, but {text!r} holds {mark.text!r}")
    return _marked("ref", text, markup)


def box(box_1000: Sequence[int], markup: Markup = QWEN2_VL.markup) -> str:
    """`<|box_start|>(x1,y1),(x2,y2)<|box_end|>` of one box in [0, 999], or as `markup` spells it.

    Raises:
        ValueError: not four integers in [0, 999], or corners in the wrong order.
    """
    if len(box_1000) != 4 or not all(map(_is_coordinate, box_1000)):
        raise ValueError(f"a box is four integers x1, y1, x2, y2 in [0, {_SCALE - 1}], got {tuple(box_1000)}")
    x1, y1, x2, y2 = box_1000
    if x2 < x1 or y2 < y1:
        raise ValueError(f"box {tuple(box_1000)} has x2 < x1 or y2 < y1; the upper left corner comes first")
    return _marked("box", f"({x1},{y1}),({x2},{y2})", markup)


def quad(points_1000: Sequence[Sequence[int]], markup: Markup = QWEN2_VL.markup) -> str:
    """`<|quad_start|>(x,y),(x,y),(x,y),(x,y)<|quad_end|>` of four corners in [0, 999], or as `markup` spells it.

    Raises:
        ValueError: not four points of two integers in [0, 999].
    """
    if len(points_1000) != 4 or not all(len(p) == 2 and all(map(_is_coordinate, p)) for p in points_1000):
        raise ValueError(f"a quad is four (x, y) points of integers in [0, {_SCALE - 1}], got {points_1000!r}")
    return _marked("quad", ",".join(f"({x},{y})" for x, y in points_1000), markup)


def _marked(kind: Kind, body: str, markup: Markup) -> str:
    at = 2 * KINDS.index(kind)
    return markup.written[at] + body + markup.written[at + 1]


def _is_coordinate(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and 0 <= int(value) < _SCALE


@dataclass(frozen=True)
class Mention:
    """A closed reference (`label` is set) or a well-formed place, ending before character `end` of its text."""

    end: int
    label: str | None = None
    box_1000: Box | None = None
    quad_1000: Quad | None = None


def mentions(text: str, markup: Markup = ANY_MARKUP) -> Iterator[Mention]:
    """References and places in a model's reply, in order; skips what is malformed and never raises.

    Skipped: a start without its end (a later start wins), bodies that are not coordinates, x2 < x1 or y2 < y1,
    coordinates over 1000. Exactly 1000, the far edge, reads as 999. Linear in the length of the text.
    """
    opened: Mark | None = None
    for mark in markup.find(text):
        if not mark.opens and opened is not None and opened.kind == mark.kind:
            body = text[opened.end : mark.start]
            if mark.kind == "ref":
                yield Mention(mark.end, label=body)
            elif mark.kind == "box" and (found := _read_box(body)):
                yield Mention(mark.end, box_1000=found)
            elif mark.kind == "quad" and (corners := _read_quad(body)):
                yield Mention(mark.end, quad_1000=corners)
        opened = mark if mark.opens else None


def parse_grounding(text: str, markup: Markup = ANY_MARKUP) -> list[Grounded]:
    """The places in a model's reply, in order, each with the last label before it ("" before any).

    Labels without a place are left out; malformed places are skipped (`mentions`). The label is verbatim (Qwen-VL
    writes a leading space inside it).

    >>> parse_grounding("<ref>a cat</ref><box>(1,2),(30,40)</box>")
    [Grounded(label='a cat', boxes_1000=((1, 2, 30, 40),), quads_1000=())]
    """
    found: list[tuple[str, list[Box], list[Quad]]] = [("", [], [])]
    for mention in mentions(text, markup):
        if mention.label is not None:
            found.append((mention.label, [], []))
        elif mention.box_1000 is not None:
            found[-1][1].append(mention.box_1000)
        elif mention.quad_1000 is not None:
            found[-1][2].append(mention.quad_1000)
    return [Grounded(label, tuple(boxes), tuple(quads)) for label, boxes, quads in found if boxes or quads]


def _read_numbers(pattern: re.Pattern[str], body: str) -> list[int] | None:
    match = pattern.fullmatch(body) if len(body) <= _LONGEST_BODY else None
    if match is None:
        return None
    numbers = [int(group) for group in match.groups()]
    return None if max(numbers) > _SCALE else [min(n, _SCALE - 1) for n in numbers]


def _read_box(body: str) -> Box | None:
    numbers = _read_numbers(_BOX_BODY, body)
    if numbers is None:
        return None
    x1, y1, x2, y2 = numbers
    return (x1, y1, x2, y2) if x1 <= x2 and y1 <= y2 else None


def _read_quad(body: str) -> Quad | None:
    n = _read_numbers(_QUAD_BODY, body)
    return None if n is None else ((n[0], n[1]), (n[2], n[3]), (n[4], n[5]), (n[6], n[7]))


def plain_text(text: str, markup: Markup = ANY_MARKUP) -> str:
    """The text a reader wants: labels stay, places and marks go.

    Only coordinates between a matching start and end go; a malformed place keeps its words, not its marks.
    """
    pieces: list[str] = []
    end, opened = 0, ""
    for mark in markup.find(text):
        body = text[end : mark.start]
        closes_place = not mark.opens and mark.kind == opened and mark.kind != "ref"
        pattern = _BOX_BODY if mark.kind == "box" else _QUAD_BODY
        if not (closes_place and len(body) <= _LONGEST_BODY and pattern.fullmatch(body)):
            pieces.append(body)
        opened = mark.kind if mark.opens else ""
        end = mark.end
    return "".join(pieces) + text[end:]


def check_grounding(text: str, markup: Markup = ANY_MARKUP) -> None:
    """Refuses text that must not be learned: the strict counterpart of `mentions`, for training targets.

    Raises:
        ValueError: a mark that nothing closes or that closes nothing, marks inside marks, a place that is not
            `(x,y),(x,y)` (quads: four points), a coordinate outside [0, 999], x2 < x1 or y2 < y1.
    """
    opened: Mark | None = None
    for mark in markup.find(text):
        if mark.opens and opened is not None:
            raise ValueError(f"{_at(opened, text)} is not closed before the next mark")
        if not mark.opens and (opened is None or opened.kind != mark.kind):
            raise ValueError(f"{_at(mark, text)} closes nothing")
        if opened is not None and mark.kind != "ref":
            try:
                _check_place(mark.kind, text[opened.end : mark.start])
            except ValueError as error:
                raise ValueError(f"{_at(opened, text)}: {error}") from None
        opened = mark if mark.opens else None
    if opened is not None:
        raise ValueError(f"{_at(opened, text)} is never closed")


def _at(mark: Mark, text: str) -> str:
    return f"{mark.text} at character {mark.start} of {text[max(0, mark.start - 20) : mark.end + 40]!r}"


def _check_place(kind: Kind, body: str) -> None:
    if not _ANY_POINTS.fullmatch(body):
        raise ValueError(f"a place is written (x,y),(x,y) in whole numbers, got {body!r}")
    numbers = [int(n) for n in _INTEGER.findall(body)]
    if kind == "box":
        box(numbers)
    else:
        quad(list(zip(numbers[::2], numbers[1::2], strict=True)))


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

    def box_1000_to_exact_px(
        self, box_1000: Sequence[float], divisor: float = _SCALE
    ) -> tuple[float, float, float, float]:
        """A box in 0..1000 -> pixels of the original picture, neither rounded nor clipped (for metrics).

        `divisor=EVALUATION_DIVISOR` is how Qwen-VL's RefCOCO script reads coordinates: 999 is the far edge.
        """
        height, width = self.original_hw
        x1, y1, x2, y2 = box_1000
        return x1 / divisor * width, y1 / divisor * height, x2 / divisor * width, y2 / divisor * height

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
