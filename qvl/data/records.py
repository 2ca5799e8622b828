"""The one form of a training or evaluation sample, whatever file or generator it came from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from qvl.text.messages import Message


@dataclass(frozen=True)
class Sample:
    """A conversation to learn from (assistant turns are supervised) or to ask (its last turn is the answer)."""

    name: str
    """Unique and reproducible, e.g. `world/train/7/123456`; error messages and skip lists use it."""
    task: str
    """Task name, e.g. `caption`, `grounding`; losses and metrics are reported per task."""
    messages: tuple[Message, ...]
    meta: dict[str, Any] = field(default_factory=dict)
    """What a metric needs and a model must not see (true boxes, answer type, language)."""
    independent: bool = False
    """Each user turn is a question of its own about the pictures of the first: it must not see the other turns.
    Trained as branches of one shared beginning."""
