"""Entries of the four common layouts -> messages.

Knows: LLaVA (`conversations` of from/value with `<image>`, the file under `image`), ShareGPT and LLaMA-Factory
(`messages` or `conversations` with `<image>` and `<video>`, the files under `images` and `videos`; ms-swift's
`objects`), OpenAI (`messages` whose content is a list of parts), Qwen-VL's own (`conversations` with
`Picture 1: <img>path</img>` in the text).
Does not know: files of entries, units of boxes, whether a picture can be decoded.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from qvl.data.user.objects import fill_in
from qvl.text.messages import Image, Message, Part, Role, Text, Video, parse_messages
from qvl.text.official import parse_prompt

Layout = Literal["llava", "sharegpt", "openai", "qwen_vl"]
_ROLES: dict[str, Role] = {
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
}
_UNREAD = ("tools", "audio", "audios", "chosen", "rejected", "label", "history")
"""Fields that mean something for training; to pass over them would train on something else than what was meant."""
_PLACEHOLDER = re.compile(r"(<image>|<video>)\n?")
"""The line break that LLaVA writes behind a placeholder belongs to the placeholder."""
_NUMBERED = re.compile(r"Picture \d+: ?(?=<img>)")
_BEHIND = re.compile(r"(?<=</img>)\n")
_LONGEST_PATH = 1024
"""Longer than any path that people write; what is longer is a picture's bytes in base64."""
_ADDRESS = re.compile(r"^(?:data:|[A-Za-z][A-Za-z0-9+.\-]+://)")


def layout_of(entry: Mapping[str, Any]) -> Layout:
    """Which layout an entry is in. Raises `ValueError` naming the fields it has."""
    if "messages" in entry:
        turns = entry["messages"] if isinstance(entry["messages"], list) else []
        listed = any(isinstance(turn, Mapping) and isinstance(turn.get("content"), list) for turn in turns)
        return "openai" if listed else "sharegpt"
    if "conversations" in entry:
        turns = entry["conversations"] if isinstance(entry["conversations"], list) else []
        values = [str(turn.get("value")) for turn in turns if isinstance(turn, Mapping)]
        named = any(key in entry for key in ("image", "images", "video", "videos"))
        return "qwen_vl" if not named and any("<img>" in value for value in values) else "llava"
    raise ValueError(
        f"there is neither 'messages' nor 'conversations', only {', '.join(map(repr, entry)) or 'nothing'}; the "
        "layouts read are those of LLaVA, ShareGPT/LLaMA-Factory, OpenAI and Qwen-VL"
    )


def read_entry(entry: Any, root: Path) -> tuple[Message, ...]:
    """The conversation of one entry; paths start from `root`.

    Raises:
        FileNotFoundError: a picture or clip is not there.
        ValueError: what is wrong, beginning with the field (`conversations[2].from`).
    """
    if not isinstance(entry, Mapping):
        raise ValueError(f"an entry must be an object with 'messages' or 'conversations', not {type(entry).__name__}")
    if unread := [key for key in _UNREAD if entry.get(key)]:
        raise ValueError(f"the field {unread[0]!r} is not read by this version; write it into the conversation's text")
    layout = layout_of(entry)
    if layout in ("openai", "qwen_vl") and entry.get("objects"):
        raise ValueError(f"the field 'objects' goes with <image> placeholders, this entry is in the layout {layout}")
    key = "messages" if "messages" in entry else "conversations"
    turns = list(_turns(entry, key))
    if layout == "openai":
        messages = _openai(turns, root)
    elif layout == "qwen_vl":
        messages = [Message(role, _numbered(where, content, root)) for where, role, content in turns]
    else:
        messages = _with_placeholders(entry, turns, root)
    system = entry.get("system")
    if system and not isinstance(system, str):
        raise ValueError(f"the field 'system' must be text, got {system!r}")
    if system and messages[0].role != "system":
        messages.insert(0, Message("system", (Text(system),)))
    _check_turns(messages, key)
    return tuple(messages)


_Turn = tuple[str, Role, Any]
"""Field (`messages[0].content`), role, content."""


def _turns(entry: Mapping[str, Any], key: str) -> Iterator[_Turn]:
    turns = entry[key]
    if not isinstance(turns, list) or not turns:
        raise ValueError(f"{key} must be a list with at least one turn, got {turns!r}")
    for i, turn in enumerate(turns):
        if not isinstance(turn, Mapping):
            raise ValueError(f"{key}[{i}] must be an object, not {type(turn).__name__}")
        who = "role" if "role" in turn else "from"
        said = "content" if "content" in turn else "value"
        role, content = turn.get(who), turn.get(said)
        if not isinstance(role, str) or role not in _ROLES:
            raise ValueError(f"{key}[{i}].{who} is {role!r}; known are {', '.join(_ROLES)}")
        if not isinstance(content, str | list):
            raise ValueError(f"{key}[{i}].{said} must be text or a list of parts, not {type(content).__name__}")
        yield f"{key}[{i}].{said}", _ROLES[role], content


def _check_turns(messages: list[Message], key: str) -> None:
    if messages[-1].role != "assistant":
        raise ValueError(f"{key} ends with a turn of the {messages[-1].role}: there is no answer to learn")
    for i, message in enumerate(messages):
        if message.role == "assistant" and not any(isinstance(p, Text) and p.text.strip() for p in message.parts):
            raise ValueError(f"{key}: the answer in turn {i} is empty")


def _openai(turns: list[_Turn], root: Path) -> list[Message]:
    plain = []
    for where, role, content in turns:
        parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
        plain.append({"role": role, "content": [_located(part, where, root) for part in parts]})
    return list(parse_messages(plain))


def _located(part: Any, where: str, root: Path) -> Any:
    """A part with its path found; what else is wrong with it `parse_messages` says."""
    if not isinstance(part, Mapping):
        return part
    out = dict(part)
    for key in ("image", "video", "image_url", "video_url"):
        value = out.get(key)
        if isinstance(value, str):
            out[key] = locate(value, root, where)
        elif isinstance(value, Mapping) and isinstance(value.get("url"), str):
            out[key] = {**value, "url": locate(value["url"], root, where)}
    return out


def _numbered(where: str, text: Any, root: Path) -> tuple[Part, ...]:
    """Qwen-VL's text; the chat format numbers pictures itself, so the numbers go, with the line break behind."""
    if not isinstance(text, str):
        raise ValueError(f"{where} must be text, not a list")
    bare = _BEHIND.sub("", _NUMBERED.sub("", text))
    try:
        parts = parse_prompt(bare)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    return tuple(Image(locate(p.source, root, where)) if isinstance(p, Image) else p for p in parts)


def _with_placeholders(entry: Mapping[str, Any], turns: list[_Turn], root: Path) -> list[Message]:
    waiting = {"<image>": _media(entry, "image", "images"), "<video>": _media(entry, "video", "videos")}
    makers: dict[str, Callable[[Any, str], Part]] = {
        "<image>": lambda source, where: Image(locate(source, root, where)),
        "<video>": lambda source, where: Video(_clip(source, root, where)),
    }
    for where, _, text in turns:
        if not isinstance(text, str):
            raise ValueError(f"{where} must be text; parts in a list belong under 'messages', as OpenAI writes them")
    given = {tag: len(files) for tag, files in waiting.items()}
    wanted = {tag: sum(text.count(tag) for _, _, text in turns) for tag in waiting}
    for tag in waiting:
        if wanted[tag] != given[tag]:
            raise ValueError(f"{wanted[tag]} {tag} in the text, but {given[tag]} given; each needs its file")
    texts = fill_in(entry, [text for _, _, text in turns])
    messages = []
    for (where, role, _), text in zip(turns, texts, strict=True):
        parts: list[Part] = []
        for piece in _PLACEHOLDER.split(text):
            if piece in waiting:
                parts.append(makers[piece](waiting[piece].pop(0), where))
            elif piece:
                parts.append(Text(piece))
        messages.append(Message(role, tuple(parts)))
    return messages


def _media(entry: Mapping[str, Any], one: str, many: str) -> list[Any]:
    if entry.get(one) and entry.get(many):
        raise ValueError(f"there are both {one!r} and {many!r}; keep one of them")
    found = entry.get(one) or entry.get(many) or []
    return list(found) if isinstance(found, list) else [found]


def _clip(source: Any, root: Path, where: str) -> Any:
    """A clip's path, or the paths of its frames."""
    if isinstance(source, list):
        return tuple(locate(frame, root, where) for frame in source)
    return locate(source, root, where)


def locate(source: Any, root: Path, where: str) -> str:
    """The path of a picture or clip; data URIs stay, addresses too (what opens pictures refuses them).

    Raises:
        FileNotFoundError: there is no such file; says where it was looked for.
        ValueError: not a text.
    """
    if not isinstance(source, str) or not source:
        raise ValueError(f"{where}: a picture or clip must be given as a path, not as {reprlib.repr(source)}")
    path = source.removeprefix("file://")
    if _ADDRESS.match(path):
        return path
    if len(path) > _LONGEST_PATH:
        raise ValueError(
            f"{where}: {path[:40]!r}... ({len(path)} characters) is no path; a picture's bytes in base64 are given as "
            "data:image/png;base64,..."
        )
    found = root / path
    if not found.is_file():
        raise FileNotFoundError(
            f"{where}: no file {found}; paths start from the data file's folder or from --image-root"
        )
    return str(found)
