"""The pieces a rendered conversation is made of, and the writer that collects them.

Knows: runs of token ids, pictures and clips between them, which runs are training targets of which answer.
Does not know: roles and turns (`chat`), how many tokens a picture takes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from qvl.text.messages import Image, Message, Text, Video, WordPicture
from qvl.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class TextChunk:
    """Token ids that are all training targets, or none of them."""

    ids: tuple[int, ...]
    supervised: bool
    turn: int = 0
    """Of a target: which answer of the conversation (0, 1, ...) it belongs to or, outside answers, leads up to."""


@dataclass(frozen=True)
class ImageChunk:
    """A picture; `inputs` puts its tokens here: start, one per vision token, end."""

    part: Image


@dataclass(frozen=True)
class VideoChunk:
    """A clip; `inputs` puts its tokens here: start, one per vision token, end."""

    part: Video


@dataclass(frozen=True)
class WordPictureChunk:
    """A picture told in words; it takes the rows and positions of a picture of as many vision tokens."""

    hw: tuple[int, int]
    """Rows and columns of words."""
    ids: tuple[int, ...]
    """One token per word, row by row. A word of several tokens shows each of them in turn over neighbouring places."""


Shown = ImageChunk | VideoChunk | WordPictureChunk
Chunk = TextChunk | Shown


@final
class ChunkWriter:
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
        self._turn = 0
        self._answers = 0

    def text(self, text: str, *, supervised: bool) -> None:
        if text:
            self._supervise(supervised)
            self._text.append(text)

    def control(self, token_id: int, *, supervised: bool) -> None:
        self._supervise(supervised)
        self._close_text()
        self._ids.append(token_id)

    def cut(self) -> None:
        """Tokenization does not cross this place."""
        self._close_text()

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

    def end_of_message(self, message: Message) -> None:
        """What is written from now on belongs to the next answer if this was one."""
        self._answers += message.role == "assistant"

    def finish(self) -> list[Chunk]:
        self._close_chunk()
        return self._chunks

    def _told(self, part: WordPicture) -> WordPictureChunk:
        # As in running text, behind a space; a digit is a token of its own and would leave the space one, too.
        words = {word for row in part.words for word in row}
        tokens = {word: self._tokenizer.encode(word if word.isdigit() else f" {word}") for word in words}
        ids = (tokens[w][(y + x) % len(tokens[w])] for y, row in enumerate(part.words) for x, w in enumerate(row))
        return WordPictureChunk((len(part.words), len(part.words[0])), tuple(ids))

    def _picture(self, chunk: Shown, number: str) -> None:
        if self._number_pictures:
            self.text(number, supervised=False)  # written for the model, also inside an assistant's turn
        self._close_chunk()
        self._chunks.append(chunk)
        if self._number_pictures:
            self.text(self._tokenizer.family.after_picture, supervised=False)

    def _supervise(self, supervised: bool) -> None:
        if supervised != self._supervised or (supervised and self._answers != self._turn):
            self._close_chunk()
            self._supervised, self._turn = supervised, self._answers

    def _close_text(self) -> None:
        self._ids += self._tokenizer.encode("".join(self._text), markup=True)
        self._text.clear()

    def _close_chunk(self) -> None:
        self._close_text()
        if self._ids:
            self._chunks.append(TextChunk(tuple(self._ids), self._supervised, self._turn))
            self._ids.clear()
