"""What a picture costs in tokens and how it is shown to the model: the one place where the families' inputs differ.

Knows: Qwen2-VL's free grids (a token per 2 x 2 patches) and Qwen-VL's fixed squares (a fixed number of slots that hold
the letters of the path).
Does not know: text, turns, packing, models.
"""

from __future__ import annotations

import os
import unicodedata
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, final

from qvl.inputs.config import ProcessorConfig, Square
from qvl.media.load import Visual, image_file_grid, load_image, load_square, load_video
from qvl.text.chunks import ImageChunk, Shown, VideoChunk, WordPictureChunk
from qvl.text.family import QWEN_VL
from qvl.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Seen:
    """A picture or clip, and the tokens that stand for it: `start`, one per vision token, `end`."""

    visual: Visual | None
    """None for a picture that is only told."""
    start: int
    slots: tuple[int, ...]
    """Ids of the rows that vision tokens overwrite; of a told picture the words that stand for them."""
    end: int
    grid: tuple[int, int, int]
    """Vision tokens (temporal, height, width), for positions; their product is the number of slots."""


class Vision(ABC):
    """Turns the pictures of one conversation into patches and tokens."""

    @abstractmethod
    def see(self, chunk: Shown) -> Seen:
        """Opens, resizes and cuts up one picture or clip.

        Raises:
            FileNotFoundError, ValueError: what cannot be opened or shown, and why.
        """

    @abstractmethod
    def cost(self, chunk: Shown) -> int:
        """Vision tokens that a picture takes, from its header: no pixel is decoded. 0 for a clip: what it takes is
        known only when it is opened, and it takes no more than the budget's `max_tokens`.

        Raises: as `see`, except for damage that only decoding can find.
        """


def vision(tokenizer: Tokenizer, config: ProcessorConfig) -> Vision:
    """The way of seeing that `config` asks for.

    Raises:
        ValueError: the vocabulary belongs to the other family.
    """
    family = tokenizer.family
    if (family is QWEN_VL) != (config.square is not None):
        fix = "ProcessorConfig.qwen_vl()" if family is QWEN_VL else "a ProcessorConfig without `square`"
        raise ValueError(f"the vocabulary is one of {family.name}, the pictures' settings are not; use {fix}")
    return FreeGrid(tokenizer, config) if config.square is None else FixedSquare(tokenizer, config, config.square)


@final
class FreeGrid(Vision):
    """Qwen2-VL: a picture keeps its shape; merge x merge patches are one token."""

    def __init__(self, tokenizer: Tokenizer, config: ProcessorConfig) -> None:
        self._start, self._end, self._image_pad = map(tokenizer.special, tokenizer.family.picture)
        self._video_pad = tokenizer.special("<|video_pad|>")
        self._config = config

    def see(self, chunk: Shown) -> Seen:
        if isinstance(chunk, WordPictureChunk):
            return Seen(None, self._start, chunk.ids, self._end, (1, *chunk.hw))
        c = self._config
        options: dict[str, Any] = {**vars(chunk.part), "geometry": c.geometry, "resize": c.resize}
        if isinstance(chunk, ImageChunk):
            visual, pad = load_image(**options, budget=c.pixels), self._image_pad
        else:
            visual, pad = load_video(**options, budget=c.video, frame_budget=c.pixels), self._video_pad
        t, h, w = visual.grid
        grid = t, h // c.geometry.merge, w // c.geometry.merge
        return Seen(visual, self._start, (pad,) * (grid[0] * grid[1] * grid[2]), self._end, grid)

    def cost(self, chunk: Shown) -> int:
        if isinstance(chunk, WordPictureChunk):
            return len(chunk.ids)
        if isinstance(chunk, VideoChunk):
            return 0
        c = self._config
        _, h, w = image_file_grid(**vars(chunk.part), geometry=c.geometry, budget=c.pixels)
        return h * w // c.geometry.merge**2


@final
class FixedSquare(Vision):
    """Qwen-VL: a picture is squashed to a square; its tokens are the adapter's queries."""

    def __init__(self, tokenizer: Tokenizer, config: ProcessorConfig, square: Square) -> None:
        self._start, self._end, self._pad = map(tokenizer.special, tokenizer.family.picture)
        self._config = config
        self._square = square

    def see(self, chunk: Shown) -> Seen:
        if isinstance(chunk, WordPictureChunk):
            if len(chunk.ids) != self._square.slots:
                raise ValueError(f"a picture told in {len(chunk.ids)} words does not fit {self._square.slots} slots")
            return Seen(None, self._start, chunk.ids, self._end, (1, 1, len(chunk.ids)))
        if isinstance(chunk, VideoChunk):
            raise ValueError("Qwen-VL has no videos; show it single frames as pictures, or use a Qwen2-VL model")
        c, side = self._config, self._square.side
        options = dict(vars(chunk.part))
        source = options.pop("source")
        if asked := [f"{name}={value}" for name, value in options.items() if value is not None]:
            raise ValueError(
                f"Qwen-VL sees every picture at {side} x {side} pixels: leave {', '.join(asked)} out of the message"
            )
        visual = load_square(source, side=side, geometry=c.geometry, resize=c.resize)
        slots = path_slots(source, self._square.slots, self._pad)
        return Seen(visual, self._start, slots, self._end, (1, 1, len(slots)))

    def cost(self, chunk: Shown) -> int:
        return self._square.slots


def path_slots(source: Any, count: int, pad: int) -> tuple[int, ...]:
    """The ids between `<img>` and `</img>`: the path's UTF-8 bytes, each *value* used as an id, then `pad`.

    So "a.png" begins with the ids 97 46 112 110 103, whatever tokens those ids are in text (tokenization_qwen.py,
    `_encode_imgurl`; NFC like all text there). Vision tokens overwrite these rows; the letters are how the reference
    tells its model which file to open. A picture without a path (bytes, data URI, object, array) has only pads, and so
    has one whose path leaves no room for a pad behind it: there (at 256 bytes of 256 slots) the reference's model
    cannot find the path's end and fails.
    """
    written = b""
    if isinstance(source, os.PathLike) or (isinstance(source, str) and source[:5].lower() != "data:"):
        written = unicodedata.normalize("NFC", os.fspath(source)).encode("utf-8", "surrogateescape")
    if len(written) >= count:
        written = b""
    return (*written, *[pad] * (count - len(written)))
