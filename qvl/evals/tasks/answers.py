"""Tasks whose answer is a word, a place or a line: naming, questions, dialogues, comparisons, clips, reading.

Knows: when a short answer is right. Does not know: captions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

from qvl.data.records import Sample
from qvl.engine.api import Reply
from qvl.evals.metrics.anls import anls
from qvl.evals.metrics.grounding import hit, iou
from qvl.evals.tasks.base import Scores, Task, plain_answer, true_answer
from qvl.text.grounding import plain_text


def right(sample: Sample, reply: Reply) -> float:
    """1.0 when the reply is the answer, case, edge punctuation and a leading article apart."""
    return float(plain_answer(reply.text) == plain_answer(true_answer(sample)))


@final
class Naming(Task):
    """Place -> name ("What is at the top left?") and box -> name."""

    name = "naming"
    title = "Naming"
    metrics = ("accuracy",)
    kinds = frozenset(("what", "box_to_name"))
    max_new_tokens = 24

    def judge(self, samples: Sequence[Sample], replies: Sequence[Reply]) -> list[Scores]:
        return [{"accuracy": right(s, r)} for s, r in zip(samples, replies, strict=True)]


@final
class Vqa(Task):
    """Questions with an answer of one or two words. Ask the same number of each kind: the headline is a plain mean."""

    name = "vqa"
    title = "Visual questions"
    metrics = ("accuracy",)
    kinds = frozenset(("count", "count_same", "exists", "background", "left_right", "above_below", "where", "bigger"))
    max_new_tokens = 24

    def judge(self, samples: Sequence[Sample], replies: Sequence[Reply]) -> list[Scores]:
        return [{"accuracy": right(s, r)} for s, r in zip(samples, replies, strict=True)]


@final
class Compare(Task):
    """Questions about two or three pictures."""

    name = "compare"
    title = "Several pictures"
    metrics = ("accuracy",)
    kinds = frozenset(("compare",))
    max_new_tokens = 24

    def judge(self, samples: Sequence[Sample], replies: Sequence[Reply]) -> list[Scores]:
        return [{"accuracy": right(s, r)} for s, r in zip(samples, replies, strict=True)]


@final
class Clips(Task):
    """Questions about short videos."""

    name = "video"
    title = "Clips"
    metrics = ("accuracy",)
    kinds = frozenset(("video",))
    max_new_tokens = 24

    def judge(self, samples: Sequence[Sample], replies: Sequence[Reply]) -> list[Scores]:
        return [{"accuracy": right(s, r)} for s, r in zip(samples, replies, strict=True)]


@final
class Told(Task):
    """Text only: the scene is told, not shown. The whole answer, coordinates included, must be equal."""

    name = "told"
    title = "Told scenes (text only)"
    metrics = ("accuracy",)
    kinds = frozenset(("text",))
    max_new_tokens = 192

    def judge(self, samples: Sequence[Sample], replies: Sequence[Reply]) -> list[Scores]:
        return [{"accuracy": right(s, r)} for s, r in zip(samples, replies, strict=True)]


@final
class Dialogue(Task):
    """The last answer of a conversation: a place is right with IoU >= 0.5, words when they are equal."""

    name = "dialogue"
    title = "Dialogues"
    metrics = ("accuracy",)
    kinds = frozenset(("dialogue",))
    max_new_tokens = 96

    def judge(self, samples: Sequence[Sample], replies: Sequence[Reply]) -> list[Scores]:
        return [{"accuracy": self._right(s, r)} for s, r in zip(samples, replies, strict=True)]

    def _right(self, sample: Sample, reply: Reply) -> float:
        places = sample.meta.get("answer_boxes_px", ())
        if not places:
            return right(sample, reply)
        return float(bool(reply.boxes) and hit(iou(reply.boxes[0].xyxy, places[0])))


@final
class Ocr(Task):
    """Reading lines of text: ANLS and exact match of the words; quads are not judged. `meta["answers"]`, where there
    is one, lists what is accepted."""

    name = "ocr"
    title = "Reading"
    metrics = ("anls", "exact")
    kinds = frozenset(("ocr",))
    max_new_tokens = 96

    def judge(self, samples: Sequence[Sample], replies: Sequence[Reply]) -> list[Scores]:
        judged = []
        for sample, reply in zip(samples, replies, strict=True):
            accepted = [plain_text(a).strip() for a in sample.meta.get("answers", [true_answer(sample)])]
            read = plain_text(reply.text).strip()
            judged.append({"anls": anls(read, accepted), "exact": float(read in accepted)})
        return judged
