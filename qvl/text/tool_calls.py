"""A reply's text, piece by piece -> what is said and which tools are called.

Knows: the keywords of `qvl.text.tools`, where a JSON object ends. Does not know: whether a tool exists.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, final

from qvl.text.tools import ARGS, FUNCTION, RETURN


@dataclass(frozen=True)
class Said:
    """Text for the reader."""

    text: str


@dataclass(frozen=True)
class CallBegins:
    index: int
    name: str


@dataclass(frozen=True)
class CallArguments:
    """A piece of the JSON text of a call's arguments."""

    index: int
    text: str


Piece = Said | CallBegins | CallArguments


@dataclass(frozen=True)
class ToolCall:
    name: str
    arguments: str
    """JSON text as the model wrote it; it may be broken."""


@final
class CallReader:
    """Splits a reply into words and calls, holding back only what might still become a keyword."""

    def __init__(self, opening: str = "", *, max_calls: int | None = None, may_call: bool = True) -> None:
        """
        Args:
            opening: what the reply goes on from (`Prompt.opening`).
            max_calls: calls after these are dropped.
            may_call: False = nobody runs tools: whatever the reply says is for the reader.
        """
        self._max_calls = max_calls
        self._may_call = may_call
        self._state: Literal["said", "name", "arguments", "over"] = "said"
        self._held = ""
        self._index = -1
        self._json = _JsonEnd()
        self._after_return = opening == RETURN
        self._first: list[Piece] = []
        if opening and not self._after_return:
            self._first = self.push(opening)

    def push(self, text: str) -> list[Piece]:
        """What this text makes certain."""
        self._held += text
        first, self._first = self._first, []
        return first + list(self._advance(final=False))

    def close(self) -> list[Piece]:
        """What was held back: no more text comes."""
        first, self._first = self._first, []
        pieces = first + list(self._advance(final=True))
        if self._state == "arguments" and self._json.empty:
            pieces.append(CallArguments(self._index, "{}"))
        return pieces

    def _advance(self, final: bool) -> Iterator[Piece]:
        while True:
            before = (self._state, len(self._held))
            step = {"said": self._say, "name": self._name, "arguments": self._arguments, "over": self._drop}
            yield from step[self._state](final)
            if (self._state, len(self._held)) == before or not self._held:
                return

    def _say(self, final: bool) -> Iterator[Piece]:
        if self._after_return:  # the colon of `✿RETURN✿: ` is the reply's first word
            if not final and len(self._held) < 2:
                return
            self._held = self._held.removeprefix(":").removeprefix(" ")
            self._after_return = False
        at = self._held.find(f"{FUNCTION}:") if self._may_call else -1
        if at >= 0:
            said, self._held = self._held[:at].rstrip(), self._held[at + len(FUNCTION) + 1 :]
            self._state = "name"
        else:
            keep = 0 if final or not self._may_call else _unsure(self._held, f"{FUNCTION}:")
            said, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        if said:
            yield Said(said)

    def _name(self, final: bool) -> Iterator[Piece]:
        name, found, rest = self._held.lstrip().partition("\n")
        if not found and ARGS in name:  # on one line
            name, found, rest = name.partition(ARGS)[0], ARGS, ARGS + name.partition(ARGS)[2]
        if not found and not final:
            return
        self._held = rest
        if self._max_calls is not None and self._index + 1 >= self._max_calls:
            self._state = "over"
            return
        self._index += 1
        self._state, self._json = "arguments", _JsonEnd()
        yield CallBegins(self._index, name.strip())

    def _arguments(self, final: bool) -> Iterator[Piece]:
        if self._json.empty:
            start = self._held.lstrip()
            if not final and f"{ARGS}:".startswith(start):
                return
            self._held = start.removeprefix(f"{ARGS}:").lstrip()
        at = self._held.find(f"{FUNCTION}:")
        if at >= 0:
            written, self._held = self._held[:at].rstrip(), self._held[at + len(FUNCTION) + 1 :]
        else:
            keep = 0 if final else _unsure(self._held, f"{FUNCTION}:")
            written, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
            written = written.rstrip() if final else written
        if written := self._json.take(written):
            yield CallArguments(self._index, written)
        if at >= 0:
            if self._json.empty:
                yield CallArguments(self._index, "{}")
            self._state = "name"

    def _drop(self, final: bool) -> Iterator[Piece]:
        self._held = ""
        yield from ()


@final
class _JsonEnd:
    """Takes text up to the end of the JSON object it begins with; what does not begin with `{` is taken whole."""

    def __init__(self) -> None:
        self.empty = True
        self._depth = 0
        self._in_string = self._escaped = self._plain = self._done = False

    def take(self, text: str) -> str:
        if self._done or not text:
            return ""
        if self.empty:
            self._plain = not text.startswith("{")
        self.empty = False
        if self._plain:
            return text
        for i, c in enumerate(text):
            if self._in_string:
                self._in_string = c != '"' or self._escaped
                self._escaped = c == "\\" and not self._escaped
            elif c == '"':
                self._in_string = True
            else:
                self._depth += (c in "{[") - (c in "}]")
                if self._depth == 0:
                    self._done = True
                    return text[: i + 1]
        return text


def read_calls(text: str, opening: str = "", *, max_calls: int | None = None) -> tuple[str, list[ToolCall]]:
    """What a whole reply says, and the calls in it.

    >>> read_calls('Look closer.\\n✿FUNCTION✿: crop\\n✿ARGS✿: {"x": 1}')
    ('Look closer.', [ToolCall(name='crop', arguments='{"x": 1}')])
    """
    reader = CallReader(opening, max_calls=max_calls)
    said, names, arguments = "", [], []
    for piece in [*reader.push(text), *reader.close()]:
        if isinstance(piece, Said):
            said += piece.text
        elif isinstance(piece, CallBegins):
            names.append(piece.name)
            arguments.append("")
        else:
            arguments[piece.index] += piece.text
    return said, [ToolCall(name, written) for name, written in zip(names, arguments, strict=True)]


def _unsure(text: str, keyword: str) -> int:
    """How many characters at the end may belong to a keyword that is still coming, the blanks before it included."""
    n = next((n for n in range(min(len(text), len(keyword) - 1), 0, -1) if text.endswith(keyword[:n])), 0)
    head = text[: len(text) - n]
    return n + len(head) - len(head.rstrip())
