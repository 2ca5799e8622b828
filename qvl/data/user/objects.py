"""ms-swift's grounding fields: `objects: {ref, bbox, bbox_type}` with `<ref-object>` and `<bbox>` in the text.

Knows: which placeholder takes which object. Does not know: pictures, what is done with the numbers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from qvl.data.user.config import BoxUnit
from qvl.text.family import QWEN2_VL
from qvl.text.grounding import ref

_TAG = re.compile("<ref-object>|<bbox>")
_BOX, _BOX_END = QWEN2_VL.markup.written[2:4]
_TYPES: dict[str, BoxUnit] = {"real": "px", "norm1": "relative"}
"""What ms-swift calls the units (`bbox_type`)."""


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
    if len(set(map(str, _listed(objects, "image_id")))) > 1:
        raise ValueError("objects.image_id names several pictures; give each conversation with boxes one picture")
    waiting = {
        "<ref-object>": [ref(_label(label)) for label in _listed(objects, "ref")],
        "<bbox>": [_marked(box) for box in _listed(objects, "bbox")],
    }
    for tag, items in waiting.items():
        wanted = sum(text.count(tag) for text in texts)
        if wanted != len(items):
            raise ValueError(f"{wanted} {tag} in the text, but objects gives {len(items)}")
    return [_TAG.sub(lambda tag: waiting[tag.group()].pop(0), text) for text in texts]


def unit_of(entry: Any, told: BoxUnit | None) -> BoxUnit | None:
    """The unit of an entry's boxes: what `objects.bbox_type` says, if it does, else what the recipe has told.

    Raises:
        ValueError: the two contradict each other, or it is no type.
    """
    objects = entry.get("objects") if isinstance(entry, Mapping) else None
    kind = objects.get("bbox_type") if isinstance(objects, Mapping) else None
    if kind is None:
        return told
    if not isinstance(kind, str) or kind not in _TYPES:
        raise ValueError(f"objects.bbox_type is {kind!r}; known are {', '.join(_TYPES)}")
    if told not in (None, _TYPES[kind]):
        raise ValueError(
            f"objects.bbox_type is {kind!r}, which is boxes: {_TYPES[kind]}, but the recipe (or --boxes) says {told}"
        )
    return _TYPES[kind]


def _listed(objects: Mapping[str, Any], key: str) -> list[Any]:
    found = objects.get(key)
    if found is None:
        return []
    if not isinstance(found, list):
        raise ValueError(f"objects.{key} must be a list with one item for each object, got {found!r}")
    return found


def _label(label: Any) -> str:
    if not isinstance(label, str | int | float):
        raise ValueError(f"objects.ref must hold texts, got {label!r}")
    return str(label)


def _marked(box: Any) -> str:
    if not isinstance(box, list) or len(box) != 4 or not all(isinstance(v, int | float) for v in box):
        raise ValueError(f"objects.bbox must hold lists of four numbers x1, y1, x2, y2, got {box!r}")
    x1, y1, x2, y2 = box
    return f"{_BOX}({x1},{y1}),({x2},{y2}){_BOX_END}"
