"""Conversations -> chunks: how each family writes turns, and which tokens are training targets.

Knows: the ChatML form of both chat models, the bare form of pretraining.
Does not know: how many tokens a picture takes, files, labels shifted by one, batches.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal, final

from qvl.text.chunks import Chunk, ChunkWriter
from qvl.text.family import QWEN_VL
from qvl.text.messages import Message, Text
from qvl.text.template import DEFAULT_SYSTEM
from qvl.text.tokenizer import Tokenizer


class ChatFormat(ABC):
    """How a conversation is spelled for a model."""

    stop_ids: tuple[int, ...]
    """Ids that end a reply."""
    numbers_pictures: bool = False
    """Whether the model learned with numbered pictures, so that they are numbered unless told otherwise."""

    @abstractmethod
    def render(
        self,
        messages: tuple[Message, ...],
        *,
        generation_prompt: bool = False,
        number_pictures: bool | None = None,
    ) -> list[Chunk]:
        """The conversation as chunks.

        Args:
            messages: from `parse_messages`.
            generation_prompt: end with the opening of an assistant turn; a last message that is `partial` is that
                opening, and the reply goes on from its words.
            number_pictures: write `Picture N: ` before picture N and `Video N: ` before clip N, counted
                through the whole conversation (the template's `add_vision_id`); Qwen-VL also has a line break
                behind each (`from_list_format`). None = as the model learned, `numbers_pictures`.

        Returns:
            Text and vision in order. Neighbouring text chunks differ in `supervised` or in `turn`.

        Raises:
            ValueError: no messages.
        """


@final
class ChatML(ChatFormat):
    r"""The chat template of Qwen2-VL.

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
        number_pictures: bool | None = None,
    ) -> list[Chunk]:
        _require_messages(messages)
        out = ChunkWriter(self._tokenizer, self.numbers_pictures if number_pictures is None else number_pictures)
        closed, going_on = _split_open_turn(_with_system(messages), generation_prompt)
        for message in closed:
            target = message.role == "assistant"
            out.control(self._start, supervised=False)
            out.text(f"{message.role}\n", supervised=False)
            out.parts(message, supervised=target)
            out.control(self._end, supervised=target)
            out.text("\n", supervised=False)
            out.end_of_message(message)
        if generation_prompt:
            out.control(self._start, supervised=False)
            out.text("assistant\n", supervised=False)
        if going_on:
            out.parts(going_on, supervised=False)
        return out.finish()


@final
class QwenVLChatML(ChatFormat):
    r"""The chat form of Qwen-VL-Chat (qwen_generation_utils.py `make_context`, finetune.py `preprocess`).

    The turns are those of `ChatML`; a picture is `Picture N: <img>...</img>\n`. Three things differ:

    - Role, line break and content are tokenized apart in every turn, so a question that begins with a line break
      keeps two of them (`\n`, `\n`) where the template of Qwen2-VL fuses them into one token.
    - Targets, as the official fine-tuning has them: an assistant's text, and in *every* turn `<|im_start|>`,
      `<|im_end|>` and the `\n` behind it. Role names, the line break behind them and questions are not targets.
    - A reply ends at `<|im_end|>`, `<|im_start|>` or `<|endoftext|>`. The reference goes one step further: after
      one of the first two it forces `<|endoftext|>`, stops there, and cuts the text at the first of the two. The
      text is the same; our ids lack the forced one.

    Deliberately different: the reference also reads `<img>path</img>` typed by a user as a picture. Here pictures
    are parts of messages and `<img>` is text; `official.parse_prompt` turns such strings into parts.
    """

    numbers_pictures = True

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._start = tokenizer.special("<|im_start|>")
        self._end = tokenizer.special("<|im_end|>")
        self.stop_ids = (self._end, self._start, tokenizer.special("<|endoftext|>"))

    def render(
        self,
        messages: tuple[Message, ...],
        *,
        generation_prompt: bool = False,
        number_pictures: bool | None = None,
    ) -> list[Chunk]:
        _require_messages(messages)
        out = ChunkWriter(self._tokenizer, self.numbers_pictures if number_pictures is None else number_pictures)
        closed, going_on = _split_open_turn(_with_system(messages), generation_prompt)
        for message in closed:
            self._open(out, message.role)
            out.parts(message, supervised=message.role == "assistant")
            out.control(self._end, supervised=True)
            out.text("\n", supervised=True)
            out.end_of_message(message)
        if generation_prompt:
            self._open(out, "assistant")
        if going_on:
            out.parts(going_on, supervised=False)
        return out.finish()

    def _open(self, out: ChunkWriter, role: str) -> None:
        out.control(self._start, supervised=True)
        out.text(role, supervised=False)
        out.cut()
        out.text("\n", supervised=False)
        out.cut()


@final
class Raw(ChatFormat):
    """The pretraining form of both families: the parts of all turns in order, no roles and no system prompt of its own.

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
        number_pictures: bool | None = None,
    ) -> list[Chunk]:
        _require_messages(messages)
        out = ChunkWriter(self._tokenizer, self.numbers_pictures if number_pictures is None else number_pictures)
        closed, going_on = _split_open_turn(messages, generation_prompt)
        for message in closed:
            target = message.role == "assistant"
            out.parts(message, supervised=target)
            if target:
                out.control(self._end, supervised=True)
            out.end_of_message(message)
        if going_on:
            out.parts(going_on, supervised=False)
        return out.finish()


def chat_format(name: Literal["chatml", "raw"], tokenizer: Tokenizer) -> ChatFormat:
    """The format of that name, as the tokenizer's family writes it.

    Raises:
        ValueError: an unknown name, or a vocabulary without the special tokens the format needs.
    """
    if name == "chatml":
        return QwenVLChatML(tokenizer) if tokenizer.family is QWEN_VL else ChatML(tokenizer)
    if name == "raw":
        return Raw(tokenizer)
    raise ValueError(f"chat format {name!r} is unknown; choose chatml or raw")


def _with_system(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    return messages if messages[0].role == "system" else (Message("system", (Text(DEFAULT_SYSTEM),)), *messages)


def _split_open_turn(
    messages: tuple[Message, ...], generation_prompt: bool
) -> tuple[tuple[Message, ...], Message | None]:
    """The turns that are closed, and the last one if the reply is to go on from it."""
    if generation_prompt and messages[-1].partial:
        return messages[:-1], messages[-1]
    return messages, None


def _require_messages(messages: tuple[Message, ...]) -> None:
    if not messages:
        raise ValueError("a conversation needs at least one message, got none")
