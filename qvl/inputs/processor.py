"""The one door from conversations to a `Batch`, for training and for inference alike.

Knows: how text and pictures take turns in a sequence; which tokens are supervised; which rotary positions everything
gets.
Does not know: what a picture costs in tokens (`vision`), models, caches, batching policy.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Seq
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np

from qvl.batch import Batch
from qvl.inputs.config import ChatFormatName, ProcessorConfig, Resize, Square
from qvl.inputs.positions import Run, TextRun, VisionRun, linear_positions, mrope_positions
from qvl.inputs.sequence import Sequence, next_token_labels, pack
from qvl.inputs.vision import Seen, vision
from qvl.media.load import Visual
from qvl.text.chat import ChatFormat, chat_format
from qvl.text.chunks import Chunk, TextChunk, VideoChunk
from qvl.text.messages import Message, Text, parse_messages
from qvl.text.targets import check_targets
from qvl.text.tokenizer import Tokenizer

__all__ = ["ChatFormatName", "Processor", "ProcessorConfig", "Resize", "Square"]

Admit = Callable[[int, int], None]
"""(tokens, how many of them are pictures) -> nothing, or an error that says why they are too many."""
_LONG = 1 << 18
"""Characters: fewer are encoded in no time."""


class _Expansion:
    """Collects one sequence while its chunks are walked."""

    def __init__(self) -> None:
        self._ids: list[int] = []
        self._supervised: list[bool] = []
        self._turns: list[int] = []
        self._rows: list[int] = []
        self._runs: list[Run] = []
        self._visuals: list[Visual] = []
        self._text_run = 0

    def text(self, chunk: TextChunk) -> None:
        self._add(chunk.ids, chunk.supervised, chunk.turn)
        self._text_run += len(chunk.ids)

    def vision(self, seen: Seen) -> None:
        first = len(self._ids) + 1
        self._rows.extend(range(first, first + len(seen.slots)))
        self._add((seen.start, *seen.slots, seen.end), False, 0)
        # The start token closes the text run before the picture, the end token opens the one after it.
        self._runs += [TextRun(self._text_run + 1), VisionRun(seen.grid)]
        self._text_run = 1
        if seen.visual is not None:
            self._visuals.append(seen.visual)

    def _add(self, ids: Seq[int], supervised: bool, turn: int) -> None:
        self._ids += ids
        self._supervised += [supervised] * len(ids)
        self._turns += [turn] * len(ids)

    def close(self, rope_axes: int, labels: bool, name: str) -> Sequence:
        positions = mrope_positions if rope_axes == 3 else linear_positions
        positions_RT, following = positions([*self._runs, TextRun(self._text_run)])
        tokens_T = np.asarray(self._ids, np.int64)
        turns_T = np.asarray(self._turns, np.int64)
        return Sequence(
            tokens_T=tokens_T,
            positions_RT=positions_RT,
            vision_rows_M=np.asarray(self._rows, np.int64),
            visuals=tuple(self._visuals),
            next_position=following,
            labels_T=next_token_labels(tokens_T, np.asarray(self._supervised, bool)) if labels else None,
            turns_T=np.concatenate((turns_T[1:], turns_T[:1])) if labels else None,
            name=name,
        )


class Processor:
    """`processor(conversations)` -> packed `Batch`; `processor.sequence(messages)` -> one unpacked `Sequence`.

    One class for both families: the tokenizer's family decides how turns are written, `config.square` how pictures
    are seen.
    """

    def __init__(self, tokenizer: Tokenizer, config: ProcessorConfig | None = None) -> None:
        """
        Args:
            config: None = the published settings of the tokenizer's family.

        Raises:
            ValueError: vocabulary and settings belong to different families.
        """
        self.tokenizer = tokenizer
        self.config = config or ProcessorConfig.of_family(tokenizer.family)
        self._vision = vision(tokenizer, self.config)

    def with_options(self, **changes: Any) -> Processor:
        """The same processor with some options of `ProcessorConfig` changed."""
        return Processor(self.tokenizer, replace(self.config, **changes))

    def __call__(
        self,
        conversations: Seq[Seq[Mapping[str, Any] | Message]],
        *,
        generation_prompt: bool = False,
        number_pictures: bool | None = None,
        labels: bool = False,
        chat_format: ChatFormatName | None = None,
    ) -> Batch:
        """Prepares several conversations and lays them end to end.

        Args:
            generation_prompt: end with the opening of an assistant turn, ready to answer.
            number_pictures: write `Picture 1: ` before each picture (the template's `add_vision_id`); None = if the
                model learned so (Qwen-VL's ChatML).
            labels: supervise assistant turns.

        Raises:
            ValueError: naming the conversation and what is wrong with it.
        """
        if isinstance(conversations, Mapping | str) or (
            conversations and isinstance(conversations[0], Mapping | Message)
        ):
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
        return pack(sequences, patch_values=g.row, merge=g.merge)

    def sequence(
        self,
        messages: Seq[Mapping[str, Any] | Message],
        *,
        generation_prompt: bool = False,
        number_pictures: bool | None = None,
        labels: bool = False,
        chat_format: ChatFormatName | None = None,
        name: str = "",
        admit: Admit | None = None,
    ) -> Sequence:
        """Prepares one conversation: renders it, opens its media, expands placeholders, computes positions.

        `admit(tokens, vision)` hears, before very long texts are encoded, before any pixel is decoded and again after
        each clip, how many tokens the conversation has at least and how many of them are pictures; it raises to stop
        there.
        """
        turns = self._parse(messages, labels, name)
        if admit is not None:
            self._admit_words(turns, admit)
        chunks = self.chat(chat_format).render(
            turns, generation_prompt=generation_prompt, number_pictures=number_pictures
        )
        return self._expand(chunks, admit).close(self.config.rope_axes, labels, name)

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
        in the first user turn there is nothing to share, and with pictures in later ones there is more than a
        beginning: then the result is the one sequence of the whole conversation.
        """
        turns = self._parse(messages, labels, name)
        lead = turns[: next(i for i, m in enumerate(turns) if m.role == "user")]
        asked, answered = turns[len(lead) :: 2], turns[len(lead) + 1 :: 2]
        media = tuple(p for p in asked[0].parts if not isinstance(p, Text))
        if not media or any(not isinstance(p, Text) for question in asked[1:] for p in question.parts):
            return [self.sequence(turns, labels=labels, chat_format=chat_format, name=name)]
        chat = self.chat(chat_format)
        axes = self.config.rope_axes
        sequences: list[Sequence] = []
        for turn, (question, answer) in enumerate(zip(asked, answered, strict=True)):
            words = tuple(p for p in question.parts if isinstance(p, Text))
            chunks = chat.render((*lead, Message("user", (*media, *words)), answer))
            split = 1 + max(i for i, c in enumerate(chunks) if not isinstance(c, TextChunk))
            if not sequences:
                sequences.append(self._expand(chunks[:split]).close(axes, labels, name))
            branch = self._expand(chunks[split:]).close(axes, labels, name)
            sequences.append(branch.after(sequences[0], turn))
        return sequences

    def _parse(self, messages: Seq[Mapping[str, Any] | Message], labels: bool, name: str) -> tuple[Message, ...]:
        turns = parse_messages(messages)
        if labels:
            try:
                check_targets(turns, self.tokenizer.family)
            except ValueError as error:
                raise ValueError(f"{name}: {error}" if name else str(error)) from None
        return turns

    def _admit_words(self, turns: Seq[Message], admit: Admit) -> None:
        """Encoding 64 MB of words takes a minute and gigabytes; by the longest token there is, what cannot fit is known
        at once."""
        texts = [part.text for turn in turns for part in turn.parts if isinstance(part, Text)]
        if sum(map(len, texts)) > _LONG:
            admit(sum(len(unicodedata.normalize("NFC", text)) for text in texts) // self._longest_token, 0)

    @cached_property
    def _longest_token(self) -> int:
        """In bytes, which are at least as many as characters; marks in a text are tokens, too."""
        return max(map(len, (*self.tokenizer.ordinary_tokens(), *self.tokenizer.specials)))

    def _expand(self, chunks: Seq[Chunk], admit: Admit | None = None) -> _Expansion:
        out = _Expansion()
        words = shown = 0
        if admit is not None:
            words = sum(len(c.ids) if isinstance(c, TextChunk) else 2 for c in chunks)
            shown = sum(self._vision.cost(c) for c in chunks if not isinstance(c, TextChunk))
            admit(words + shown, shown)
        for chunk in chunks:
            if isinstance(chunk, TextChunk):
                out.text(chunk)
                continue
            seen = self._vision.see(chunk)
            out.vision(seen)
            if admit is not None and isinstance(chunk, VideoChunk):
                shown += len(seen.slots)
                admit(words + shown, shown)
        return out

    def chat(self, name: ChatFormatName | None = None) -> ChatFormat:
        """The chat format in force: `name`, or the configured one."""
        return chat_format(name or self.config.chat_format, self.tokenizer)
