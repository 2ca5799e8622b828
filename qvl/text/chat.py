"""Conversations -> chunks: runs of token ids, and pictures and clips between them.

Knows: the ChatML form of both chat models, the bare form of pretraining, which tokens are training targets.
Does not know: how many tokens a picture takes, files, labels shifted by one, batches.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal, final

from qvl.text.messages import Image, Message, Text, Video, WordPicture
from qvl.text.template import DEFAULT_SYSTEM
from qvl.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class TextChunk:
    """Token ids that are all training targets, or none of them."""

    ids: tuple[int, ...]
    supervised: bool


@dataclass(frozen=True)
class ImageChunk:
    """A picture; `inputs` puts `<|vision_start|>`, its placeholders and `<|vision_end|>` here."""

    part: Image


@dataclass(frozen=True)
class VideoChunk:
    """A clip; `inputs` puts `<|vision_start|>`, its placeholders and `<|vision_end|>` here."""

    part: Video


@dataclass(frozen=True)
class WordPictureChunk:
    """A picture told in words; it takes the positions of a picture of as many vision tokens."""

    hw: tuple[int, int]
    """Rows and columns of words."""
    ids: tuple[int, ...]
    """One token per word, row by row. A word of several tokens shows each of them in turn over neighbouring places."""


Chunk = TextChunk | ImageChunk | VideoChunk | WordPictureChunk


class ChatFormat(ABC):
    """How a conversation is spelled for a model."""

    stop_ids: tuple[int, ...]
    """Ids that end a reply."""

    @abstractmethod
    def render(
        self,
        messages: tuple[Message, ...],
        *,
        generation_prompt: bool = False,
        number_pictures: bool = False,
    ) -> list[Chunk]:
        """The conversation as chunks.

        Args:
            messages: from `parse_messages`.
            generation_prompt: end with the opening of an assistant turn.
            number_pictures: write `Picture N: ` before picture N and `Video N: ` before clip N, counted
                through the whole conversation (the template's `add_vision_id`).

        Returns:
            Text and vision in order. Neighbouring text chunks differ in `supervised`.

        Raises:
            ValueError: no messages.
        """


@final
class ChatML(ChatFormat):
    r"""The chat template of Qwen2-VL (and, for text, of Qwen-VL-Chat).

    Every turn is `<|im_start|>{role}\n{parts}<|im_end|>\n`, parts without separators. A conversation that
    does not begin with a system turn gets `You are a helpful assistant.`; system turns further on are
    ordinary turns. The official template writes any role's name as it stands, so a `tool` turn is
    `<|im_start|>tool\n...`. Neither model was trained on that role: their function calls are plain text
    inside the assistant's turn.

    Targets: an assistant's text and the `<|im_end|>` that closes it, by turn and not by looking for the word.
    The role line, the `\n` after `<|im_end|>`, and everything in other turns are not targets.

    Ids equal those of the rendered template string, with two deliberate differences: control tokens spelled
    in a message stay text, and an assistant's text is always tokenized apart from its role line, so that
    training on a reply that begins with a newline and generating it meet the same ids.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._start = tokenizer.special("<|im_start|>")
        self._end = tokenizer.special("<|im_end|>")
        self.stop_ids = (self._end, tokenizer.special("<|endoftext|>"))

    def render(
        self,
        messages: tuple[Message, ...],
        *,
        generation_prompt: bool = False,
        number_pictures: bool = False,
    ) -> list[Chunk]:
        _require_messages(messages)
        out = _Chunks(self._tokenizer, number_pictures)
        if messages[0].role != "system":
            messages = (Message("system", (Text(DEFAULT_SYSTEM),)), *messages)
        for message in messages:
            target = message.role == "assistant"
            out.control(self._start, supervised=False)
            out.text(f"{message.role}\n", supervised=False)
            out.parts(message, supervised=target)
            out.control(self._end, supervised=target)
            out.text("\n", supervised=False)
        if generation_prompt:
            out.control(self._start, supervised=False)
            out.text("assistant\n", supervised=False)
        return out.finish()


@final
class Raw(ChatFormat):
    """The pretraining form: the parts of all turns in order, no roles and no system prompt of its own.

    A system turn that the conversation brings is text like any other. An assistant turn is a target and is
    closed by `<|endoftext|>`, a target too; the other turns are context. `generation_prompt` adds nothing:
    the reply simply goes on. Tokenization breaks where targets begin, as it does in generation.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._end = tokenizer.special("<|endoftext|>")
        self.stop_ids = (self._end,)

    def render(
        self,
        messages: tuple[Message, ...],
        *,
        generation_prompt: bool = False,
        number_pictures: bool = False,
    ) -> list[Chunk]:
        _require_messages(messages)
        out = _Chunks(self._tokenizer, number_pictures)
        for message in messages:
            target = message.role == "assistant"
            out.parts(message, supervised=target)
            if target:
                out.control(self._end, supervised=True)
        return out.finish()


def chat_format(name: Literal["chatml", "raw"], tokenizer: Tokenizer) -> ChatFormat:
    """The format of that name.

    Raises:
        ValueError: an unknown name, or a vocabulary without the special tokens the format needs.
    """
    if name == "chatml":
        return ChatML(tokenizer)
    if name == "raw":
        return Raw(tokenizer)
    raise ValueError(f"chat format {name!r} is unknown; choose chatml or raw")


def _require_messages(messages: tuple[Message, ...]) -> None:
    if not messages:
        raise ValueError("a conversation needs at least one message, got none")


@final
class _Chunks:
    """Collects text until something ends it, because BPE must see neighbouring text parts as one string."""

    def __init__(self, tokenizer: Tokenizer, number_pictures: bool) -> None:
        self._tokenizer = tokenizer
        self._number_pictures = number_pictures
        self._images = 0
        self._videos = 0
        self._chunks: list[Chunk] = []
        self._text: list[str] = []
        self._ids: list[int] = []
        self._supervised = False

    def text(self, text: str, *, supervised: bool) -> None:
        if text:
            self._supervise(supervised)
            self._text.append(text)

    def control(self, token_id: int, *, supervised: bool) -> None:
        self._supervise(supervised)
        self._close_text()
        self._ids.append(token_id)

    def parts(self, message: Message, *, supervised: bool) -> None:
        for part in message.parts:
            if isinstance(part, Text):
                self.text(part.text, supervised=supervised)
            elif isinstance(part, Image):
                self._images += 1
                self._picture(ImageChunk(part), f"Picture {self._images}: ")
            elif isinstance(part, WordPicture):
                self._images += 1
                self._picture(self._told(part), f"Picture {self._images}: ")
            else:
                self._videos += 1
                self._picture(VideoChunk(part), f"Video {self._videos}: ")

    def finish(self) -> list[Chunk]:
        self._close_chunk()
        return self._chunks

    def _told(self, part: WordPicture) -> WordPictureChunk:
        tokens = {word: self._tokenizer.encode(f" {word}") for row in part.words for word in row}
        ids = (tokens[w][(y + x) % len(tokens[w])] for y, row in enumerate(part.words) for x, w in enumerate(row))
        return WordPictureChunk((len(part.words), len(part.words[0])), tuple(ids))

    def _picture(self, chunk: ImageChunk | VideoChunk | WordPictureChunk, number: str) -> None:
        if self._number_pictures:
            self.text(number, supervised=False)  # written for the model, also inside an assistant's turn
        self._close_chunk()
        self._chunks.append(chunk)

    def _supervise(self, supervised: bool) -> None:
        if supervised != self._supervised:
            self._close_chunk()
            self._supervised = supervised

    def _close_text(self) -> None:
        self._ids += self._tokenizer.encode("".join(self._text), markup=True)
        self._text.clear()

    def _close_chunk(self) -> None:
        self._close_text()
        if self._ids:
            self._chunks.append(TextChunk(tuple(self._ids), self._supervised))
            self._ids.clear()
