"""Referring grounding: a phrase -> one box, scored as RefCOCO is.

Knows: boxes in pixels of the picture as given. Does not know: how coordinates are written in text.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean, median
from typing import final

from qvl.data.records import Sample
from qvl.engine.api import Reply
from qvl.evals.metrics.grounding import hit, iou
from qvl.evals.tasks.base import Constant, Scores, Task

TRUE_BOXES_TRIED = 64


@final
class Grounding(Task):
    """Acc@0.5 and mean IoU of the reply's first box with `meta["answer_boxes_px"][0]`; no readable box scores 0."""

    name = "grounding"
    title = "Grounding"
    metrics = ("acc@0.5", "iou", "readable")
    kinds = frozenset(("grounding", "referring"))
    max_new_tokens = 64

    def judge(self, samples: Sequence[Sample], replies: Sequence[Reply]) -> list[Scores]:
        judged = []
        for sample, reply in zip(samples, replies, strict=True):
            overlap = iou(reply.boxes[0].xyxy, sample.meta["answer_boxes_px"][0]) if reply.boxes else 0.0
            judged.append({"acc@0.5": float(hit(overlap)), "iou": overlap, "readable": float(bool(reply.boxes))})
        return judged

    def constants(self, samples: Sequence[Sample]) -> list[Constant]:
        """Constant boxes: mean, median, centred ones of ten sizes, and true boxes of training samples."""
        boxes = [relative_box(s) for s in samples]
        columns = list(zip(*boxes, strict=True))
        tried = [tuple(round(mean(c)) for c in columns), tuple(round(median(c)) for c in columns)]
        tried += [(500 - h, 500 - h, min(999, 500 + h), min(999, 500 + h)) for h in range(50, 501, 50)]
        step = max(1, len(boxes) // TRUE_BOXES_TRIED)
        tried += boxes[::step]
        return [Constant(box_1000=box) for box in dict.fromkeys(tried)]


def relative_box(sample: Sample) -> tuple[int, int, int, int]:
    """The true box in thousandths of the picture."""
    height, width = sample.meta["hw"]
    x1, y1, x2, y2 = sample.meta["answer_boxes_px"][0]
    return round(x1 * 1000 / width), round(y1 * 1000 / height), round(x2 * 1000 / width), round(y2 * 1000 / height)
