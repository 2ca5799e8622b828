"""Hand-made samples: tasks and runner are tested without the world where they can be."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from qvl.data.records import Sample
from qvl.engine.api import Box, Reply, Usage
from qvl.text.messages import Image, Message, Text

Maker = Callable[..., Sample]


@pytest.fixture
def make_sample() -> Maker:
    """make_sample(name, kind, question, answer, lang="en", hw=(40, 60), **meta) with a black picture."""

    def make(name, kind, question="What?", answer="dog", *, lang="en", hw=(40, 60), **meta):
        picture = np.zeros((*hw, 3), dtype=np.uint8)
        messages = (
            Message("user", (Image(picture, max_pixels=7840), Text(question))),
            Message("assistant", (Text(answer),)),
        )
        return Sample(name, kind, messages, {"lang": lang, "hw": hw, **meta})

    return make


@pytest.fixture
def make_reply() -> Callable[..., Reply]:
    """make_reply(text, *(label, xyxy) boxes)."""

    def make(text, *boxes):
        return Reply(text, (), "stop", tuple(Box(label, xyxy) for label, xyxy in boxes), Usage(0, 0, 0))

    return make
