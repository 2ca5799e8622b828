"""The two model families as text sees them: special tokens in id order, and how marks in text are spelled.

Knows: spellings. Does not know: ids, files, what stands between marks (`grounding`).

Samples, questions of the embedded world and `grounding.ref/box/quad` spell marks in Qwen2-VL's way, which no other text
uses by accident; every family's tokenizer reads that spelling, Qwen-VL's reads its own `<ref>` `<box>` `<quad>` too.
So one sample trains both, and each family's replies come out in its own spelling.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, final

Kind = Literal["ref", "box", "quad"]
KINDS: tuple[Kind, ...] = ("ref", "box", "quad")


@dataclass(frozen=True)
class Mark:
    """One mark found in a text, at characters `start` to `end`."""

    text: str
    kind: Kind
    opens: bool
    start: int
    end: int

    def __str__(self) -> str:
        return self.text


@final
class Markup:
    """How grounding marks are spelled: one spelling is written, it and possibly others are read."""

    def __init__(self, written: tuple[str, ...], *also_read: tuple[str, ...]) -> None:
        """
        Args:
            written: six marks: reference, box and quad, each with its end.
            also_read: further spellings, in the same order.
        """
        self.written = written
        self.reads: dict[str, str] = {
            mark: own for spelling in (written, *also_read) for mark, own in zip(spelling, written, strict=True)
        }
        """Every mark that is read -> the written one with the same meaning."""
        self._meaning = {
            mark: (KINDS[i // 2], i % 2 == 0) for spelling in (written, *also_read) for i, mark in enumerate(spelling)
        }
        self._pattern = re.compile("|".join(map(re.escape, self.reads)))

    def find(self, text: str) -> Iterator[Mark]:
        """The marks in `text`, in order."""
        for found in self._pattern.finditer(text):
            yield Mark(found.group(), *self._meaning[found.group()], *found.span())

    def split(self, text: str) -> Iterator[str | Mark]:
        """The whole text in order: marks, and the strings between them (never empty)."""
        end = 0
        for mark in self.find(text):
            if mark.start > end:
                yield text[end : mark.start]
            yield mark
            end = mark.end
        if end < len(text):
            yield text[end:]


@dataclass(frozen=True)
class Family:
    """What tells a Qwen-VL vocabulary and its texts from a Qwen2-VL one."""

    name: Literal["qwen_vl", "qwen2_vl"]
    specials: tuple[str, ...]
    """Special tokens in id order, right after the ordinary ones."""
    markup: Markup
    picture: tuple[str, str, str]
    """Tokens around and in the place of a picture: start, end, placeholder."""
    after_picture: str = ""
    """Text after a numbered picture (`Picture 1: ` stands before it)."""


_QWEN2_VL_MARKS = (
    *("<|object_ref_start|>", "<|object_ref_end|>"),
    *("<|box_start|>", "<|box_end|>"),
    *("<|quad_start|>", "<|quad_end|>"),
)
_QWEN_VL_MARKS = ("<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>")

QWEN2_VL = Family(
    name="qwen2_vl",
    specials=(
        *("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
        *_QWEN2_VL_MARKS,
        *("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
    ),
    markup=Markup(_QWEN2_VL_MARKS),
    picture=("<|vision_start|>", "<|vision_end|>", "<|image_pad|>"),
)
"""Fourteen special tokens; with the full vocabulary 151643..151656."""

QWEN_VL = Family(
    name="qwen_vl",
    specials=(
        *("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
        *(f"<|extra_{i}|>" for i in range(205)),
        *_QWEN_VL_MARKS,
        *("<img>", "</img>", "<imgpad>"),
    ),
    markup=Markup(_QWEN_VL_MARKS, _QWEN2_VL_MARKS),
    picture=("<img>", "</img>", "<imgpad>"),
    after_picture="\n",
)
"""217 special tokens; with the full vocabulary 151643..151859 (tokenization_qwen.py of the official folders)."""

ANY_MARKUP = QWEN_VL.markup
"""For readers who do not know which family wrote a text: reads both spellings."""


def family_of(specials: Iterable[str]) -> Family:
    """The family whose special tokens these are, told by how a picture begins."""
    return QWEN_VL if QWEN_VL.picture[0] in specials else QWEN2_VL
