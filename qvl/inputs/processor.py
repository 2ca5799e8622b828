"""The one door from conversations to a `Batch`, for training and for inference alike.

Knows: a picture of any size becomes `<|vision_start|>` + one placeholder per merged token + `<|vision_end|>`; which
tokens are supervised; which rotary positions everything gets.
Does not know: models, caches, batching policy.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from qvl.batch import Batch
from qvl.inputs.positions import Run, TextRun, VisionRun, linear_positions, mrope_positions
from qvl.inputs.sequence import Sequence, next_token_labels, pack
from qvl.media.load import Visual, load_image, load_video
from qvl.media.resize import Geometry, PixelBudget
from qvl.media.video import VideoBudget
from qvl.text.chat import ChatFormat, Chunk, ImageChunk, TextChunk, VideoChunk, WordPictureChunk, chat_format
from qvl.text.messages import Image, Message, Text, Video, parse_messages
from qvl.text.tokenizer import Tokenizer

ChatFormatName = Literal["chatml", "raw"]
Resize = Literal["exact", "fast"]


class _Expansion:
    """Collects one sequence while its chunks are walked."""

    def __init__(self) -> None:
        self._ids: list[int] = []
        self._supervised: list[bool] = []
        self._rows: list[int] = []
        self._runs: list[Run] = []
        self._visuals: list[Visual] = []
        self._text_run = 0

    def text(self, ids: Seq[int], supervised: bool) -> None:
        self._ids.extend(ids)
        self._supervised.extend([supervised] * len(ids))
        self._text_run += len(ids)

    def vision(self, visual: Visual, grid: tuple[int, int, int], start: int, pad: int, end: int) -> None:
        """`grid`: merged tokens (temporal, height, width)."""
        count = math.prod(grid)
        self._visuals.append(visual)
        self.cells([pad] * count, grid, start, end)

    def cells(self, ids: Seq[int], grid: tuple[int, int, int], start: int, end: int) -> None:
        """One token per vision token, with the positions of a picture."""
        self._rows.extend(range(len(self._ids) + 1, len(self._ids) + 1 + len(ids)))
        self._ids += [start, *ids, end]
        self._supervised += [False] * (len(ids) + 2)
        # `<|vision_start|>` closes the text run before the picture, `<|vision_end|>` opens the one after it.
        self._runs += [TextRun(self._text_run + 1), VisionRun(grid)]
        self._text_run = 1

    def close(self, rope_axes: int, labels: bool, name: str) -> Sequence:
        positions = mrope_positions if rope_axes == 3 else linear_positions
        positions_RT, following = positions([*self._runs, TextRun(self._text_run)])
        tokens_T = np.asarray(self._ids, np.int64)
        return Sequence(
            tokens_T=tokens_T,
            positions_RT=positions_RT,
            vision_rows_M=np.asarray(self._rows, np.int64),
            visuals=tuple(self._visuals),
            next_position=following,
            labels_T=next_token_labels(tokens_T, np.asarray(self._supervised, bool)) if labels else None,
            name=name,
        )


@dataclass(frozen=True)
class ProcessorConfig:
    """Everything that decides how a conversation becomes numbers."""

    geometry: Geometry = field(default_factory=Geometry)
    pixels: PixelBudget = field(default_factory=PixelBudget)
    """Bounds of one picture, unless the message sets its own."""
    video: VideoBudget = field(default_factory=VideoBudget)
    chat_format: ChatFormatName = "chatml"
    resize: Resize = "exact"
    """`exact` = Pillow, the reference; `fast` = torch uint8, several times faster. On photographs the two differ by
    0.01 grey levels on average and by 8 at most (`bench/preprocess.py` measures it)."""
    rope_axes: Literal[1, 3] = 3


class Processor:
    """`processor(conversations)` -> packed `Batch`; `processor.sequence(messages)` -> one unpacked `Sequence`."""

    def __init__(self, tokenizer: Tokenizer, config: ProcessorConfig | None = None) -> None:
        self.tokenizer = tokenizer
        self.config = config or ProcessorConfig()
        self._start = tokenizer.special("<|vision_start|>")
        self._end = tokenizer.special("<|vision_end|>")
        self._image_pad = tokenizer.special("<|image_pad|>")
        self._video_pad = tokenizer.special("<|video_pad|>")

    def with_options(self, **changes: Any) -> Processor:
        """The same processor with some options of `ProcessorConfig` changed."""
        return Processor(self.tokenizer, replace(self.config, **changes))

    def __call__(
        self,
        conversations: Seq[Seq[Mapping[str, Any] | Message]],
        *,
        generation_prompt: bool = False,
        number_pictures: bool = False,
        labels: bool = False,
        chat_format: ChatFormatName | None = None,
    ) -> Batch:
        """Prepares several conversations and lays them end to end.

        Args:
            generation_prompt: end with the opening of an assistant turn, ready to answer.
            number_pictures: write `Picture 1: ` before each picture (the template's `add_vision_id`).
            labels: supervise assistant turns.

        Raises:
            ValueError: naming the conversation and what is wrong with it.
        """
        if conversations and isinstance(conversations[0], Mapping | Message):
            raise ValueError("expected a list of conversations, got one conversation: wrap it in a list")
        sequences = [
            self.sequence(
                messages,
                generation_prompt=generation_prompt,
                number_pictures=number_pictures,
                labels=labels,
                chat_format=chat_format,
            )
            for messages in conversations
        ]
        return self.pack(sequences)

    def pack(self, sequences: Seq[Sequence]) -> Batch:
        """Lays prepared sequences end to end."""
        g = self.config.geometry
        return pack(sequences, patch_values=3 * g.temporal * g.patch**2, merge=g.merge)

    def sequence(
        self,
        messages: Seq[Mapping[str, Any] | Message],
        *,
        generation_prompt: bool = False,
        number_pictures: bool = False,
        labels: bool = False,
        chat_format: ChatFormatName | None = None,
        name: str = "",
    ) -> Sequence:
        """Prepares one conversation: renders it, opens its media, expands placeholders, computes positions."""
        chunks = self.chat(chat_format).render(
            parse_messages(messages), generation_prompt=generation_prompt, number_pictures=number_pictures
        )
        return self._expand(chunks).close(self.config.rope_axes, labels, name)

    def branches(
        self,
        messages: Seq[Mapping[str, Any] | Message],
        *,
        labels: bool = False,
        chat_format: ChatFormatName | None = None,
        name: str = "",
    ) -> list[Sequence]:
        """Prepares independent questions about the same pictures: the shared beginning, then a branch per question.

        `messages`: (system,) user with pictures, assistant, user, assistant, ... Each branch computes what the
        conversation (system, user with pictures and this question, assistant) would compute alone. Without a picture
        in the first user turn there is nothing to share and the result is the one sequence of the whole conversation.
        """
        turns = parse_messages(messages)
        lead = turns[: next(i for i, m in enumerate(turns) if m.role == "user")]
        asked, answered = turns[len(lead) :: 2], turns[len(lead) + 1 :: 2]
        media = tuple(p for p in asked[0].parts if not isinstance(p, Text))
        if not media:
            return [self.sequence(turns, labels=labels, chat_format=chat_format, name=name)]
        chat = self.chat(chat_format)
        axes = self.config.rope_axes
        sequences: list[Sequence] = []
        for question, answer in zip(asked, answered, strict=True):
            words = tuple(p for p in question.parts if isinstance(p, Text))
            chunks = chat.render((*lead, Message("user", (*media, *words)), answer))
            split = 1 + max(i for i, c in enumerate(chunks) if not isinstance(c, TextChunk))
            if not sequences:
                sequences.append(self._expand(chunks[:split]).close(axes, labels, name))
            branch = self._expand(chunks[split:]).close(axes, labels, name)
            sequences.append(branch.after(sequences[0]))
        return sequences

    def _expand(self, chunks: Seq[Chunk]) -> _Expansion:
        merge = self.config.geometry.merge
        out = _Expansion()
        for chunk in chunks:
            if isinstance(chunk, TextChunk):
                out.text(chunk.ids, chunk.supervised)
            elif isinstance(chunk, WordPictureChunk):
                out.cells(chunk.ids, (1, *chunk.hw), self._start, self._end)
            else:
                visual, pad = self._see(chunk)
                t, h, w = visual.grid
                out.vision(visual, (t, h // merge, w // merge), self._start, pad, self._end)
        return out

    def chat(self, name: ChatFormatName | None = None) -> ChatFormat:
        """The chat format in force: `name`, or the configured one."""
        return chat_format(name or self.config.chat_format, self.tokenizer)

    def _see(self, chunk: ImageChunk | VideoChunk) -> tuple[Visual, int]:
        c = self.config
        if isinstance(chunk, ImageChunk):
            part: Image | Video = chunk.part
            visual = load_image(**vars(part), geometry=c.geometry, budget=c.pixels, resize=c.resize)
            return visual, self._image_pad
        part = chunk.part
        visual = load_video(**vars(part), geometry=c.geometry, budget=c.video, frame_budget=c.pixels, resize=c.resize)
        return visual, self._video_pad
