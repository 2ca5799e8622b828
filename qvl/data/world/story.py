"""What a sample is made from before it becomes messages, and the base of all tasks that are more than one scene.

Knows: visuals, a preface in words, turns, truths.
Does not know: splits, weights.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

from qvl.data.world.compose import Composer
from qvl.data.world.config import Split
from qvl.data.world.questions import Asker, Turn, box_1000
from qvl.data.world.scene import Scene
from qvl.text.messages import Message, Part, Text


@dataclass(frozen=True)
class Story:
    """Visuals come first in the first message, then `preface`, then the first question."""

    turns: tuple[Turn, ...]
    visuals: tuple[Part, ...] = ()
    preface: str = ""
    meta: dict[str, Any] = field(default_factory=dict)

    def messages(self, asker: Asker) -> tuple[Message, ...]:
        messages = []
        for number, turn in enumerate(self.turns):
            question = turn.question
            if number == 0 and self.preface:
                question = asker.say("text_ask", preface=self.preface, question=question)
            visuals = self.visuals if number == 0 else ()
            messages.append(Message("user", (*visuals, Text(question))))
            messages.append(Message("assistant", (Text(turn.answer),)))
        return tuple(messages)


class Activity(ABC):
    """A task with its own pictures, words or frames."""

    name: str

    @abstractmethod
    def play(self, split: Split, composer: Composer, asker: Asker, wanted: int) -> Story | None:
        """A story with about `wanted` turns, or None if what was drawn gives no clear question."""


def scene_meta(scene: Scene) -> dict[str, Any]:
    """All that is true about a scene, for metrics, checkers and viewers."""
    return {
        "hw": scene.hw,
        "names": [o.concept.en for o in scene.objects],
        "names_zh": [o.concept.zh for o in scene.objects],
        "boxes_px": [o.box_px for o in scene.objects],
        "boxes_1000": [box_1000(scene, o) for o in scene.objects],
        "background": scene.background,
        "layout": scene.layout,
    }
