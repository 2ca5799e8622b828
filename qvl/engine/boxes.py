"""Places in a reply -> boxes in pixels of the pictures as they were given.

Knows: the conversation's pictures and which of them a place means. Does not know: tokens, models.

Neither family can say which picture a box lies in. The rule here: the picture that the text before the box last called
"Picture N" (in the reply, else in the question), else the first picture of the latest turn that has any.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from qvl.engine.api import Box
from qvl.text.family import ANY_MARKUP, Markup
from qvl.text.grounding import Box as BoxTuple
from qvl.text.grounding import Coordinates, Quad, mentions
from qvl.text.messages import Image, Message, Text

_NUMBERED = re.compile(r"Picture (\d{1,4})")


@dataclass(frozen=True)
class Scene:
    """What a reply may point at."""

    coordinates: tuple[Coordinates, ...]
    """Of each picture and video in reading order."""
    pictures: tuple[int, ...] = ()
    """Which of those "Picture 1", "Picture 2" ... are (the rest are videos)."""
    default: int = 0
    """The one that is meant where nothing says which."""
    question: str = ""
    """Text of the last turn."""
    markup: Markup = ANY_MARKUP
    """How the model spells places."""


def scene_of(messages: Sequence[Message], coordinates: Sequence[Coordinates], markup: Markup = ANY_MARKUP) -> Scene:
    """The scene of parsed messages whose pictures and videos have these coordinates, in reading order."""
    turns = [[part for part in message.parts if not isinstance(part, Text)] for message in messages]
    media = [part for turn in turns for part in turn]
    assert len(media) == len(coordinates), f"{len(coordinates)} sizes for {len(media)} pictures and videos"
    last = max((i for i, turn in enumerate(turns) if turn), default=0)
    return Scene(
        coordinates=tuple(coordinates),
        pictures=tuple(i for i, part in enumerate(media) if isinstance(part, Image)),
        default=sum(len(turn) for turn in turns[:last]),
        question="".join(part.text for part in messages[-1].parts if isinstance(part, Text)),
        markup=markup,
    )


def find_boxes(text: str, scene: Scene) -> tuple[Box, ...]:
    """Boxes of a reply, in order; of a quadrilateral the upright box around it.

    A place without a label in the reply has the label that the question asked for (its last reference), or "".
    """
    if not scene.coordinates:
        return ()
    label = ([m.label for m in mentions(scene.question, scene.markup) if m.label is not None] or [""])[-1]
    picture = _named_picture(scene.question, scene, scene.default)
    boxes: list[Box] = []
    at = 0
    for mention in mentions(text, scene.markup):
        picture = _named_picture(text[at : mention.end], scene, picture)
        at = mention.end
        if mention.label is not None:
            label = mention.label
        place_1000 = mention.box_1000 or (_around(mention.quad_1000) if mention.quad_1000 else None)
        if place_1000 is not None:
            boxes.append(Box(label, scene.coordinates[picture].box_1000_to_px(place_1000), picture))
    return tuple(boxes)


def _named_picture(text: str, scene: Scene, otherwise: int) -> int:
    """The picture that `text` calls by number last, if there is such a picture."""
    numbers = [n for n in map(int, _NUMBERED.findall(text)) if 1 <= n <= len(scene.pictures)]
    return scene.pictures[numbers[-1] - 1] if numbers else otherwise


def _around(quad_1000: Quad) -> BoxTuple:
    xs, ys = zip(*quad_1000, strict=True)
    return min(xs), min(ys), max(xs), max(ys)
