"""What is kept of every answer: one row per sample, and some of the pictures.

Knows: the row's fields (a contract with the reports that read `predictions.jsonl`). Does not know: how rows were made.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from qvl.data.records import Sample
from qvl.engine.api import Reply
from qvl.evals.tasks.base import Scores, asked, language, question, shows_one_picture, true_answer
from qvl.media.image import open_image
from qvl.text.messages import Image

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class LabelledBox:
    label: str
    xyxy: Box
    """Pixels of the picture as given."""


@dataclass(frozen=True)
class Prediction:
    """One answered sample."""

    name: str
    task: str
    """Task of the suite, e.g. `vqa`."""
    kind: str
    """Kind of question, e.g. `count`."""
    lang: str
    question: str
    answer: str
    """The true one."""
    prediction: str
    finish_reason: str
    values: Scores
    hw: tuple[int, int] | None
    """(height, width) of the picture as given; None (and no boxes) unless there is exactly one."""
    boxes_px: tuple[LabelledBox, ...]
    """Boxes of the prediction."""
    answer_boxes_px: tuple[Box, ...]
    """Boxes of the true answer (none for questions that do not ask for a place)."""
    objects_px: tuple[LabelledBox, ...]
    """Everything that is in the picture."""


def prediction(task: str, sample: Sample, reply: Reply, values: Scores) -> Prediction:
    meta = sample.meta if shows_one_picture(sample) else {}
    return Prediction(
        name=sample.name,
        task=task,
        kind=sample.task,
        lang=language(sample),
        question=question(sample),
        answer=true_answer(sample),
        prediction=reply.text.strip(),
        finish_reason=reply.finish_reason,
        values=values,
        hw=meta.get("hw"),
        boxes_px=tuple(LabelledBox(b.label, b.xyxy) for b in reply.boxes),
        answer_boxes_px=tuple(meta.get("answer_boxes_px", ())),
        objects_px=tuple(map(LabelledBox, meta.get("names", ()), meta.get("boxes_px", ()))),
    )


def save_pictures(samples: Sequence[Sample], out_dir: Path, per_kind: int) -> dict[str, str]:
    """Saves the picture of the first `per_kind` samples of every kind and language: {sample name: path in out_dir}.

    The first ones, whatever was answered: a report that shows them shows no selection.
    """
    folder = out_dir / "pictures"
    folder.mkdir(parents=True, exist_ok=True)
    saved: dict[str, str] = {}
    seen: Counter[tuple[str, str]] = Counter()
    for sample in samples:
        parts = [p for m in asked(sample) for p in m.parts if isinstance(p, Image)]
        group = (sample.task, language(sample))
        if not parts or seen[group] == per_kind:
            continue
        seen[group] += 1
        path = folder / (re.sub(r"[^\w.-]+", "_", sample.name) + ".webp")
        open_image(parts[-1].source).save(path, "WEBP", quality=92, method=4)
        saved[sample.name] = str(path.relative_to(out_dir))
    return saved
