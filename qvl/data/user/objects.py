"""ms-swift's grounding fields: `objects: {ref, bbox, bbox_type}` with `<ref-object>` and `<bbox>` in the text.

Knows: which placeholder takes which object. Does not know: pictures, what is done with the numbers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from qvl.text.family import QWEN2_VL
from qvl.text.grounding import ref

_TAG = re.compile("<ref-object>|<bbox>")
_BOX, _BOX_END = QWEN2_VL.markup.written[2:4]


def fill_in(entry: Mapping[str, Any], texts: Sequence[str]) -> list[str]:
    """The texts with labels and boxes (marked, in the file's own numbers) in the places of their placeholders.

    Raises:
        ValueError: more or fewer placeholders than objects, a box that is not four numbers, boxes of several pictures.
    """
    objects = entry.get("objects")
    if objects is None:
        return list(texts)
    if not isinstance(objects, Mapping):
        raise ValueError(f"objects must hold 'ref' and 'bbox', got {type(objects).__name__}")
    if len(set(objects.get("image_id") or [0])) > 1:
        raise ValueError("objects.image_id names several pictures; give each conversation with boxes one picture")
    waiting = {
        "<ref-object>": [ref(str(label)) for label in objects.get("ref") or []],
        "<bbox>": [_marked(box) for box in objects.get("bbox") or []],
    }
    for tag, items in waiting.items():
        wanted = sum(text.count(tag) for text in texts)
        if wanted != len(items):
            raise ValueError(f"{wanted} {tag} in the text, but objects gives {len(items)}")
    return [_TAG.sub(lambda tag: waiting[tag.group()].pop(0), text) for text in texts]


def _marked(box: Any) -> str:
    if not isinstance(box, list) or len(box) != 4 or not all(isinstance(v, int | float) for v in box):
        raise ValueError(f"objects.bbox must hold lists of four numbers x1, y1, x2, y2, got {box!r}")
    x1, y1, x2, y2 = box
    return f"{_BOX}({x1},{y1}),({x2},{y2}){_BOX_END}"
