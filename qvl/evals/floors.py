"""Floors: what is reached without looking. A score means something only above them.

Knows: the best constant answers, pictures turned grey. Does not know: models, files.

Two floors: the best constant answer per kind of question and language, chosen on *training* samples; and the model
itself, asked the same questions with every picture replaced by plain mid-grey of the same size (`blind`), which shows
what it answers from the words of the question alone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from qvl.data.records import Sample
from qvl.engine.api import Reply
from qvl.evals.tasks.base import Constant, Task, language
from qvl.media.image import image_hw
from qvl.text.messages import Image, Message, Part, Video

GREY = 128
TRAIN_SAMPLES_TRIED = 300
"""Training samples per kind and language that constants are chosen on."""


@dataclass(frozen=True)
class ConstantFloor:
    replies: tuple[Reply, ...]
    """One per test sample, in order."""
    chosen: dict[str, str]
    """Kind and language -> the constant, e.g. {"count/en": "1"}."""


def constant_floor(task: Task, train: Sequence[Sample], test: Sequence[Sample]) -> ConstantFloor:
    """The best constant answer per kind of question and language: chosen on `train`, given to `test`.

    Raises:
        ValueError: `train` has no sample of a kind and language that `test` has.
    """
    by_group: dict[str, list[Sample]] = defaultdict(list)
    for sample in train:
        if sample.task in task.kinds:
            by_group[_group(sample)].append(sample)
    best: dict[str, Constant] = {}
    for group in sorted({_group(s) for s in test}):
        if not by_group[group]:
            raise ValueError(
                f"the constant floor of {task.name} needs training samples of {group}, got none; take more than "
                f"{len(train)} training samples"
            )
        best[group] = _best_constant(task, by_group[group][:TRAIN_SAMPLES_TRIED])
    replies = tuple(best[_group(s)].reply(s) for s in test)
    return ConstantFloor(replies, {group: str(constant) for group, constant in best.items()})


def _group(sample: Sample) -> str:
    return f"{sample.task}/{language(sample)}"


def _best_constant(task: Task, samples: Sequence[Sample]) -> Constant:
    """Highest headline value; ties go to the higher second metric, then to the earlier (more frequent) candidate."""

    def value(constant: Constant) -> tuple[float, ...]:
        scores = task.judge(samples, [constant.reply(s) for s in samples])
        return tuple(sum(s[name] for s in scores) for name in task.metrics)

    return max(task.constants(samples), key=value)


def shows_something(sample: Sample) -> bool:
    """Is there a picture or a video to hide?"""
    return any(isinstance(part, Image | Video) for message in sample.messages for part in message.parts)


def blind(sample: Sample) -> Sample:
    """The same question with every picture and frame replaced by mid-grey of the same size (and pixel budget).

    Raises:
        ValueError: a sample with a video file; only pictures and lists of frames can be taken away.
    """
    return replace(sample, messages=tuple(_blind_message(m, sample.name) for m in sample.messages))


def _blind_message(message: Message, name: str) -> Message:
    return Message(message.role, tuple(_blind_part(p, name) for p in message.parts))


def _blind_part(part: Part, name: str) -> Part:
    if isinstance(part, Image):
        return replace(part, source=_grey(part.source))
    if isinstance(part, Video):
        if isinstance(part.source, str | bytes | Path):
            raise ValueError(f"sample {name} shows a video file; the blind floor needs pictures or lists of frames")
        return replace(part, source=[_grey(frame) for frame in part.source])
    return part


def _grey(source: Any) -> np.ndarray:
    return np.full((*image_hw(source), 3), GREY, dtype=np.uint8)
