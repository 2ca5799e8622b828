"""Boxes of other people's data -> the 0 to 999 that the models read and write.

Knows: marks in text (`<box>`, `<|box_start|>` and so on) around numbers of a stated unit.
Does not know: files, layouts; how coordinates are converted (`Coordinates`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace

from qvl.data.user.config import BoxUnit
from qvl.media.image import image_hw
from qvl.text.family import ANY_MARKUP, Mark
from qvl.text.grounding import Coordinates, box, quad, ref
from qvl.text.messages import Image, Message, Text

_NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:[eE]-?\d+)?")
_SAID: dict[BoxUnit, str] = {
    "px": "pixels of the picture",
    "relative": "0 to 1",
    "1000": "whole numbers from 0 to 1000",
}
_UNITS: dict[BoxUnit, tuple[int, int]] = {"relative": (1, 1), "1000": (1000, 1000)}
"""(height, width) of the frame that relative coordinates lie in."""


def rescale(messages: Sequence[Message], unit: BoxUnit | None) -> tuple[Message, ...]:
    """The same conversation with every reference, box and quad in Qwen2-VL's spelling, coordinates 0 to 999.

    Both families' tokenizers read that spelling. Coordinates are those of the picture as stored (upright).

    Raises:
        ValueError: marks that are not balanced; a place that is not four (quad: eight) numbers; no `unit` although
            there are places; numbers that cannot be of that unit; pixels with several pictures of different sizes.
    """
    pictures = [part.source for message in messages for part in message.parts if isinstance(part, Image)]

    def frame_hw() -> tuple[int, int]:
        if unit is None:
            raise ValueError(
                "there are boxes, but not what their numbers are: say boxes: px (pixels of the picture), relative "
                "(0 to 1) or 1000 (0 to 999), in the recipe under data or as --boxes"
            )
        if unit != "px":
            return _UNITS[unit]
        sizes = {image_hw(source) for source in pictures}
        if len(sizes) != 1:
            raise ValueError(
                f"boxes in pixels need one picture (or several of one size), there are {len(pictures)} of sizes "
                f"{sorted(sizes)}: write them as relative or 1000"
            )
        return sizes.pop()

    def spelled(message: Message) -> Message:
        parts = [Text(_respell(p.text, unit, frame_hw)) if isinstance(p, Text) else p for p in message.parts]
        return replace(message, parts=tuple(parts))

    return tuple(map(spelled, messages))


def _respell(text: str, unit: BoxUnit | None, frame_hw: Callable[[], tuple[int, int]]) -> str:
    if "<" not in text:
        return text
    out: list[str] = []
    opened: Mark | None = None
    end = 0
    for mark in ANY_MARKUP.find(text):
        between = text[end : mark.start]
        if mark.opens == (opened is not None) or (opened is not None and opened.kind != mark.kind):
            raise ValueError(f"{mark.text} at character {mark.start} of {text[:80]!r} does not fit what is open there")
        if opened is None:
            out.append(between)
        elif opened.kind == "ref":
            out.append(ref(between))
        else:
            out.append(_place(opened, between, unit, frame_hw()))
        opened = mark if mark.opens else None
        end = mark.end
    if opened is not None:
        raise ValueError(f"{opened.text} at character {opened.start} of {text[:80]!r} is never closed")
    return "".join([*out, text[end:]])


def _place(mark: Mark, body: str, unit: BoxUnit | None, hw: tuple[int, int]) -> str:
    numbers = [float(n) for n in _NUMBER.findall(body)]
    wanted = 4 if mark.kind == "box" else 8
    if len(numbers) != wanted or _NUMBER.sub("", body).strip("()[], \t"):
        raise ValueError(f"{mark.text} must hold {wanted} numbers, it holds {body!r}")
    if unit == "1000" and any(n != int(n) for n in numbers):
        raise ValueError(f"{body!r} cannot be a place with boxes: 1000 ({_SAID['1000']}); is it relative or px?")
    try:
        coordinates = Coordinates(hw, hw)
        if mark.kind == "box":
            return box(coordinates.box_px_to_1000(numbers))
        corners = [
            coordinates.box_px_to_1000((x, y, x, y))[:2] for x, y in zip(numbers[::2], numbers[1::2], strict=True)
        ]
        return quad(corners)
    except ValueError as error:
        raise ValueError(f"{body!r} cannot be a place with boxes: {unit} ({_SAID[unit or 'px']}): {error}") from None
