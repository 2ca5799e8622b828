"""Caption tasks: is the text right (CIDEr-D, exact), are the right things named (F1), do the boxes fit (grounded F1)?

Knows: captions, names, labelled boxes. Does not know: where references come from.

CIDEr is computed per language, document frequencies from that language's references, Chinese by characters; the value
over both is the mean over pictures. With one reference per picture a perfect caption scores 10 (papers: 1000).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import final

from qvl.data.records import Sample
from qvl.engine.api import Box, Reply
from qvl.evals.metrics.cider import cider_d
from qvl.evals.metrics.grounding import hit, iou
from qvl.evals.metrics.names import NameFinder, set_f1
from qvl.evals.metrics.ptb import ptb_tokens, space_chinese
from qvl.evals.tasks.base import Scores, Task, language, plain_answer, true_answer
from qvl.text.grounding import plain_text


@lru_cache(maxsize=1 << 14)
def caption_tokens(text: str) -> tuple[str, ...]:
    """PTB tokens, Chinese by characters. Remembered, since floors score one set of references many times."""
    return tuple(ptb_tokens(space_chinese(text)))


def ciders(samples: Sequence[Sample], captions: Sequence[str]) -> list[float]:
    """CIDEr-D of each caption against `meta["references"]` (default: the one true answer), per language."""
    values = [0.0] * len(samples)
    for lang in {language(s) for s in samples}:
        rows = [i for i, s in enumerate(samples) if language(s) == lang]
        references = [
            [plain_text(r) for r in samples[i].meta.get("references", [true_answer(samples[i])])] for i in rows
        ]
        score = cider_d([captions[i] for i in rows], references, tokenize=caption_tokens)
        for i, value in zip(rows, score.each, strict=True):
            values[i] = value
    return values


@final
class Caption(Task):
    """Free captions. F1 compares the set of known names in the caption with `meta["names"]`."""

    name = "caption"
    title = "Captions"
    metrics = ("cider", "f1", "exact")
    kinds = frozenset(("caption",))
    max_new_tokens = 64

    def __init__(self, names: NameFinder) -> None:
        self._names = names

    def judge(self, samples: Sequence[Sample], replies: Sequence[Reply]) -> list[Scores]:
        captions = [plain_text(r.text).strip() for r in replies]
        return [
            {
                "cider": cider,
                "f1": set_f1(self._names.find(caption), sample.meta["names"]).f1,
                "exact": float(plain_answer(caption) == plain_answer(plain_text(true_answer(sample)))),
            }
            for sample, caption, cider in zip(samples, captions, ciders(samples, captions), strict=True)
        ]


@final
class GroundedCaption(Task):
    """Captions with boxes. A box counts when its label names an object that it overlaps with IoU >= 0.5; an object
    can be found once; grounded F1 is over boxes."""

    name = "grounded_caption"
    title = "Grounded captions"
    metrics = ("grounded_f1", "cider", "f1")
    kinds = frozenset(("caption_grounded",))
    max_new_tokens = 192

    def __init__(self, names: NameFinder) -> None:
        self._names = names

    def judge(self, samples: Sequence[Sample], replies: Sequence[Reply]) -> list[Scores]:
        captions = [plain_text(r.text).strip() for r in replies]
        return [
            {
                "grounded_f1": self._grounded_f1(sample, reply.boxes),
                "cider": cider,
                "f1": set_f1(self._names.find(caption), sample.meta["names"]).f1,
            }
            for sample, reply, caption, cider in zip(samples, replies, captions, ciders(samples, captions), strict=True)
        ]

    def _grounded_f1(self, sample: Sample, boxes: Sequence[Box]) -> float:
        missing = list(zip(sample.meta["names"], sample.meta["boxes_px"], strict=True))
        found = 0
        for box in boxes:
            labels = self._names.find(box.label)
            best = max(
                (t for t in missing if t[0] in labels and hit(iou(box.xyxy, t[1]))),
                key=lambda t: iou(box.xyxy, t[1]),
                default=None,
            )
            if best is not None:
                missing.remove(best)
                found += 1
        every = len(boxes) + len(sample.meta["names"])
        return 2 * found / every if every else 1.0  # nothing there, nothing said
