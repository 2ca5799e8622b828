"""Qwen-VL's own strings -> messages: prompts with `<img>path</img>`, conversations of its fine-tuning files.

Knows: where a string holds pictures. Does not know: tokens; whether a path exists.

Only for strings from a trusted file: whoever writes `<img>/some/path</img>` has that file opened. In messages `<img>`
is plain text for that reason.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from qvl.text.family import QWEN_VL
from qvl.text.messages import Image, Message, Part, Role, Text

_OPEN, _CLOSE, _ = QWEN_VL.picture
_TAG = re.compile(f"{_OPEN}|{_CLOSE}")
_ROLES: tuple[Role, ...] = ("system", "user", "assistant")


def parse_prompt(text: str) -> tuple[Part, ...]:
    r"""`Picture 1: <img>a.png</img>\nWhat is it?` -> text, picture, text. Everything around pictures is kept verbatim,
    so a string that numbers its pictures is rendered with `number_pictures=False`.

    Raises:
        ValueError: an `<img>` that is not closed, a `</img>` that closes nothing, a picture without a path.
    """
    parts: list[Part] = []
    opened: re.Match[str] | None = None
    end = 0
    for tag in _TAG.finditer(text):
        if (tag.group() == _OPEN) == (opened is not None):
            wrong, what = (tag, "closes nothing") if opened is None else (opened, "is not closed before the next one")
            raise ValueError(f"{wrong.group()} at character {wrong.start()} of {text[:80]!r} {what}")
        between = text[end : tag.start()]
        if opened is not None:
            if not between:
                raise ValueError(f"{_OPEN} at character {opened.start()} of {text[:80]!r} names no picture")
            parts.append(Image(between))
            opened = None
        else:
            parts += [Text(between)] if between else []
            opened = tag
        end = tag.end()
    if opened is not None:
        raise ValueError(f"{_OPEN} at character {opened.start()} of {text[:80]!r} is never closed")
    return (*parts, Text(text[end:])) if text[end:] else tuple(parts)


def parse_conversation(turns: Sequence[Mapping[str, Any]]) -> tuple[Message, ...]:
    """The `conversations` of one example of an official fine-tuning file: `[{"from": "user", "value": "..."}, ...]`.

    Raises:
        ValueError: no turns, an unknown speaker, a turn that is not text, or what `parse_prompt` refuses.
    """
    if not turns:
        raise ValueError("a conversation needs at least one turn, got none")
    messages = []
    for i, turn in enumerate(turns):
        if not isinstance(turn, Mapping):
            raise ValueError(f"turn {i} must be an object with 'from' and 'value', not {type(turn).__name__}")
        speaker, value = turn.get("from"), turn.get("value")
        if speaker not in _ROLES or not isinstance(value, str):
            raise ValueError(
                f"turn {i} must be {{'from': one of {', '.join(_ROLES)}, 'value': text}}, got from={speaker!r} "
                f"and a value of type {type(value).__name__}"
            )
        try:
            messages.append(Message(speaker, parse_prompt(value)))
        except ValueError as error:
            raise ValueError(f"turn {i}: {error}") from None
    return tuple(messages)
