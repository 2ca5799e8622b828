"""Conversations: OpenAI-style messages, parsed once into typed parts.

Knows: which keys a message and a content part may carry.
Does not know: tokens, templates, how a picture is opened.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from numbers import Integral, Real
from typing import Any, Literal, get_args

Role = Literal["system", "user", "assistant", "tool"]


@dataclass(frozen=True)
class Text:
    """A run of text. Grounding marks (`<|object_ref_start|>`, `<|box_start|>` ...) are markup; every other
    special token written in it (`<|im_start|>`, `<|image_pad|>` ...) stays plain text."""

    text: str


@dataclass(frozen=True)
class Image:
    """A picture and its own pixel budget (None = the processor's default)."""

    source: Any
    """Path, `PIL.Image.Image`, encoded bytes, `data:` URI, or a uint8 array [height, width, 3]."""
    min_pixels: int | None = None
    max_pixels: int | None = None
    resized_height: int | None = None
    resized_width: int | None = None


@dataclass(frozen=True)
class Video:
    """A clip (path or bytes) or a sequence of frames that are taken as already sampled."""

    source: Any
    fps: float | None = None
    nframes: int | None = None
    min_frames: int | None = None
    max_frames: int | None = None
    video_start: float | None = None
    video_end: float | None = None
    min_pixels: int | None = None
    max_pixels: int | None = None
    total_pixels: int | None = None
    resized_height: int | None = None
    resized_width: int | None = None


@dataclass(frozen=True)
class WordPicture:
    """A picture told in words: a word in the place of every vision token. It needs no vision tower, so a language
    model can learn to read pictures, and where things are in them, before there are any. Training only: the
    objective `told` turns the words into vision tokens."""

    words: tuple[tuple[str, ...], ...]
    """Rows from the top, words from the left; all rows of one length."""


Part = Text | Image | Video | WordPicture


@dataclass(frozen=True)
class Message:
    role: Role
    parts: tuple[Part, ...]
    partial: bool = False
    """The assistant's last message is only begun: the reply goes on from it."""


def parse_messages(messages: Sequence[Mapping[str, Any] | Message]) -> tuple[Message, ...]:
    """Parses `[{"role": ..., "content": str | [part, ...]}, ...]`; the last may be `"partial": True`.

    Parts: `{"type": "text", "text": str}`, `{"type": "image", "image": source, **budget}`,
    `{"type": "video", "video": source, **budget}`, and the OpenAI spellings
    `{"type": "image_url", "image_url": {"url": ...}}` and `{"type": "video_url", ...}`.

    Raises:
        ValueError: an unknown role, part type or key, an empty conversation, or a value of the wrong type;
            the message names the offending message index and lists what is allowed.
    """
    if isinstance(messages, Mapping | str) or not isinstance(messages, Sequence):
        raise ValueError(f"messages must be a list of {{'role', 'content'}} objects, not {type(messages).__name__}")
    if not messages:
        raise ValueError("a conversation needs at least one message, got an empty list")
    parsed = tuple(m if isinstance(m, Message) else _parse_message(m, i) for i, m in enumerate(messages))
    for index, message in enumerate(parsed):
        if message.partial and (message.role != "assistant" or index != len(parsed) - 1):
            raise ValueError(f"message {index} is partial; only the last message may be, and only the assistant's")
    return parsed


def _parse_message(message: Mapping[str, Any], index: int) -> Message:
    where = f"message {index}"
    if not isinstance(message, Mapping):
        raise ValueError(f"{where} must be an object with 'role' and 'content', not {type(message).__name__}")
    role: Any = message.get("role")
    if role not in get_args(Role):
        raise ValueError(f"{where} has role {role!r}; allowed: {', '.join(get_args(Role))}")
    unknown = set(message) - {"role", "content", "partial"}
    if unknown:
        raise ValueError(f"{where} has unknown keys {sorted(unknown)}; allowed: role, content, partial")
    partial = message.get("partial", False)
    if not isinstance(partial, bool):
        raise ValueError(f"{where}: partial must be true or false, got {partial!r}")
    content = message.get("content")
    if isinstance(content, str):
        return Message(role, (Text(content),), partial)
    if isinstance(content, Mapping) or not isinstance(content, Sequence):
        raise ValueError(f"{where}: content must be a string or a list of parts, not {type(content).__name__}")
    return Message(role, tuple(_parse_part(p, f"{where}, part {j}") for j, p in enumerate(content)), partial)


def _parse_part(part: Any, where: str) -> Part:
    if isinstance(part, Text | Image | Video | WordPicture):
        return part
    if isinstance(part, str):
        return Text(part)
    if not isinstance(part, Mapping):
        raise ValueError(f"{where} must be an object with a 'type', not {type(part).__name__}")
    options = dict(part)
    kind = options.pop("type", None)
    if kind == "text":
        text = options.pop("text", None)
        if not isinstance(text, str):
            raise ValueError(f"{where}: 'text' must be a string, not {type(text).__name__}")
        if options:
            raise ValueError(f"{where} (text) has unknown keys {sorted(options)}; allowed: type, text")
        return Text(text)
    if kind in ("image", "image_url"):
        return _media_part(Image, kind, options, where)
    if kind in ("video", "video_url"):
        return _media_part(Video, kind, options, where)
    raise ValueError(f"{where} has type {kind!r}; allowed: text, image, image_url, video, video_url")


def _media_part(cls: type[Image] | type[Video], kind: str, options: dict[str, Any], where: str) -> Image | Video:
    if kind not in options:
        raise ValueError(f"{where} has type {kind!r} but no {kind!r} key that says which one")
    source = options.pop(kind)
    if kind.endswith("_url"):
        source = dict(source) if isinstance(source, Mapping) else {"url": source}
        source.pop("detail", None)  # OpenAI's hint; our budget keys say it in pixels
        options = {**source, **options}
        source = options.pop("url", None)
    if source is None:
        raise ValueError(f"{where}: {kind!r} is empty; give a path, bytes, a data URI or a picture object")
    allowed = {f.name for f in fields(cls)} - {"source"}
    unknown = set(options) - allowed
    if unknown:
        raise ValueError(f"{where} ({kind}) has unknown keys {sorted(unknown)}; allowed: {', '.join(sorted(allowed))}")
    for key, value in options.items():
        if value is None:
            continue
        if isinstance(value, Real) and not isinstance(value, bool | int):
            value = int(value) if isinstance(value, Integral) else float(value)  # numpy's own
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= sys.float_info.max:
            raise ValueError(f"{where}: {key} must be a positive number, got {value!r}")
        options[key] = value
    return cls(source, **options)
