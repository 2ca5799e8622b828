"""A generator that answers from a function: for tests of everything that stands on `api.Generator`.

Knows: how text with grounding marks becomes a reply. Does not know: models.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import final

from qvl.engine.api import Box, Reply, Request, Usage
from qvl.media.image import image_hw
from qvl.text.grounding import Coordinates, parse_grounding
from qvl.text.messages import Image, Text, parse_messages


@final
class CannedGenerator:
    """Answers every request with `answer(request)`, or with `answer[text of the last turn]` for a mapping.

    Boxes written in the answer come back in pixels of the request's last picture. `batches` records how many requests
    came together.

    Raises:
        KeyError: a mapping without the question that was asked.
    """

    def __init__(self, answer: Callable[[Request], str] | Mapping[str, str]) -> None:
        self._answer = answer
        self.batches: list[int] = []

    def generate(self, requests: Sequence[Request]) -> list[Reply]:
        self.batches.append(len(requests))
        return [self._reply(request) for request in requests]

    def _reply(self, request: Request) -> Reply:
        messages = parse_messages(request.messages)
        pictures = [p for m in messages for p in m.parts if isinstance(p, Image)]
        if isinstance(self._answer, Mapping):
            text = self._answer["".join(p.text for p in messages[-1].parts if isinstance(p, Text))]
        else:
            text = self._answer(request)
        hw = image_hw(pictures[-1].source) if pictures else (1, 1)
        boxes = tuple(
            Box(found.label.strip(), Coordinates(hw, hw).box_1000_to_px(box), len(pictures) - 1)
            for found in parse_grounding(text)
            for box in found.boxes_1000
        )
        usage = Usage(len(messages), len(pictures), len(text), tuple(image_hw(p.source) for p in pictures))
        return Reply(text, (), "stop", boxes, usage)
