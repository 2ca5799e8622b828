"""Boxes: overlap, accuracy at a threshold, and Qwen-VL's own way of reading a box out of text.

Knows: xyxy boxes in pixels. Does not know: labels, or which box belongs to which phrase.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from qvl.text.grounding import EVALUATION_DIVISOR, Coordinates

Box = Sequence[float]
"""(x1, y1, x2, y2) in pixels, right and bottom edges exclusive."""

_V1_BOX = re.compile(r"\((.*?)\),\((.*?)\)")


def iou(a_px: Box, b_px: Box) -> float:
    """Intersection over union in 0..1; a box of no area overlaps nothing.

    Reference: torchvision `box_iou` (continuous coordinates, no "+1"). (0,0,2,2) and (1,0,3,2) -> 1/3.

    Raises:
        ValueError: a box that does not have four numbers.
    """
    for box in (a_px, b_px):
        if len(box) != 4:
            raise ValueError(f"a box is (x1, y1, x2, y2), got {len(box)} numbers: {tuple(box)}")
    width = min(a_px[2], b_px[2]) - max(a_px[0], b_px[0])
    height = min(a_px[3], b_px[3]) - max(a_px[1], b_px[1])
    if width <= 0 or height <= 0:
        return 0.0
    overlap = width * height
    return overlap / (_area(a_px) + _area(b_px) - overlap)


def _area(box: Box) -> float:
    return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])


def hit(iou_value: float, threshold: float = 0.5) -> bool:
    """Acc@0.5 of RefCOCO counts an IoU of exactly 0.5 as right."""
    return iou_value >= threshold


def v1_box_px(
    text: str, hw: tuple[int, int], *, divisor: float = EVALUATION_DIVISOR
) -> tuple[float, float, float, float]:
    """The box that Qwen-VL's RefCOCO script reads out of a reply, in pixels of an (height, width) picture.

    The first "(x1,y1),(x2,y2)" counts, coordinates are divided by **999** (the model writes 0..999; its drawing code
    divides by 1000), anything unreadable is the box (0, 0, 0, 0), which hits nothing.
    Reference: Qwen-VL `eval_mm/evaluate_grounding.py`.
    """
    found = _V1_BOX.search(text)
    if found is None:
        return (0.0, 0.0, 0.0, 0.0)
    try:
        x1, y1 = (float(v) for v in found[1].split(","))
        x2, y2 = (float(v) for v in found[2].split(","))
    except ValueError:  # not two numbers: the script scores it as a miss, it does not stop
        return (0.0, 0.0, 0.0, 0.0)
    return Coordinates(hw, hw).box_1000_to_exact_px((x1, y1, x2, y2), divisor)
