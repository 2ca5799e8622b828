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
_UNREAD_IN_TURNS = ("tool_calls", "function_call")
"""The same of a turn."""
_COUNTS = ("weight", "loss")
"""Fields by which OpenAI and ms-swift leave an answer out of the loss."""
_FILES = ("image", "images", "video", "videos")
_NOTHING: tuple[Any, ...] = (None, "", [], {})
"""What a field may hold that says nothing. `false` and 0 do: they are labels."""
_PLACEHOLDER = re.compile(r"(<image>|<video>)\n?")
"""The line break that LLaVA writes behind a placeholder belongs to the placeholder."""
_NUMBERED = re.compile(r"Picture \d+: ?(?=<img>)")
_BEHIND = re.compile(r"(?<=</img>)\n")
_LONGEST_PATH = 1024
"""Longer than any path that people write; what is longer is a picture's bytes in base64."""
_ADDRESS = re.compile(r"^(?:data:|[A-Za-z][A-Za-z0-9+.\-]+://)")


def layout_of(entry: Mapping[str, Any]) -> Layout:
    """Which layout an entry is in. Raises `ValueError` naming the fields it has."""
    key = "messages" if "messages" in entry else "conversations"
    if key not in entry:
        raise ValueError(
            f"there is neither 'messages' nor 'conversations', only {', '.join(map(repr, entry)) or 'nothing'}; the "
            "layouts read are those of LLaVA, ShareGPT/LLaMA-Factory, OpenAI and Qwen-VL"
        )
    turns = [turn for turn in entry[key] if isinstance(turn, Mapping)] if isinstance(entry[key], list) else []
    if key == "messages" and any(isinstance(turn.get("content"), list) for turn in turns):
        return "openai"
    if not any(entry.get(name) for name in _FILES) and any("<img>" in str(turn.get(_said(turn))) for turn in turns):
        return "qwen_vl"
    return "sharegpt" if key == "messages" else "llava"


def read_entry(entry: Any, root: Path) -> tuple[Message, ...]:
    """The conversation of one entry; paths start from `root`.

    Raises:
        FileNotFoundError: a picture or clip is not there.
        ValueError: what is wrong, beginning with the field (`conversations[2].from`).
    """
    if not isinstance(entry, Mapping):
        raise ValueError(f"an entry must be an object with 'messages' or 'conversations', not {type(entry).__name__}")
    if unread := [key for key in _UNREAD if entry.get(key) not in _NOTHING]:
        raise ValueError(f"the field {unread[0]!r} is not read by this version; write it into the conversation's text")
    layout = layout_of(entry)
    if layout in ("openai", "qwen_vl") and entry.get("objects"):
        raise ValueError(f"the field 'objects' goes with <image> placeholders, this entry is in the layout {layout}")
    key = "messages" if "messages" in entry else "conversations"
    turns = list(_turns(entry, key))
    if layout == "openai":
        messages = _openai(turns, root)
        _check_files_beside(entry, messages)
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
        said = _said(turn)
        role, content = turn.get(who), turn.get(said)
        if not isinstance(role, str) or role not in _ROLES:
            raise ValueError(f"{key}[{i}].{who} is {role!r}; known are {', '.join(_ROLES)}")
        if not isinstance(content, str | list):
            raise ValueError(f"{key}[{i}].{said} must be text or a list of parts, not {type(content).__name__}")
        _check_all_is_read(turn, _ROLES[role], f"{key}[{i}]")
        yield f"{key}[{i}].{said}", _ROLES[role], content


def _said(turn: Mapping[str, Any]) -> str:
    """The field that holds a turn's words."""
    return "content" if "content" in turn else "value"


def _check_all_is_read(turn: Mapping[str, Any], role: Role, where: str) -> None:
    if unread := [key for key in _UNREAD_IN_TURNS if turn.get(key) not in _NOTHING]:
        raise ValueError(f"{where}.{unread[0]} is not read by this version; write it into the turn's text")
    for key in _COUNTS:
        if role == "assistant" and turn.get(key) not in (None, 1):
            raise ValueError(
                f"{where}.{key} is {turn[key]!r}, but every answer is learned alike: end the conversation before this "
                "turn, or leave the field out"
            )


def _check_files_beside(entry: Mapping[str, Any], messages: list[Message]) -> None:
    """Pictures that stand beside messages must be those that the messages show: nothing would show others."""
    beside = len(_media(entry, "image", "images")) + len(_media(entry, "video", "videos"))
    shown = sum(isinstance(part, Image | Video) for message in messages for part in message.parts)
    if beside and beside != shown:
        raise ValueError(
            f"{beside} files stand beside messages in the layout openai, whose parts show {shown}: name each file in a "
            "part, or write the content as text with <image>"
        )


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
        elif isinstance(value, list):  # frames of a clip
            out[key] = [locate(frame, root, where) for frame in value]
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
