"""One request on its way: from messages to a prompt, from tokens to a `Reply`.

Knows: the prompt, its pictures until they were seen, what was generated so far, when it is finished.
Does not know: models, caches, other requests.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import final

from torch import Tensor

from qvl.engine.api import Delta, FinishReason, Reply, Request, TokenLogprob, Usage
from qvl.engine.boxes import Scene, find_boxes, scene_of
from qvl.engine.content import Content, looks_of
from qvl.engine.grammar import Grammars
from qvl.engine.repetition import goes_in_circles
from qvl.engine.reply_text import ReplyText
from qvl.engine.sampler import Choice, Sampler
from qvl.engine.scheduler import Track
from qvl.inputs.processor import Processor
from qvl.inputs.sequence import Sequence
from qvl.text.grounding import Coordinates
from qvl.text.messages import Message, parse_messages

_REPETITION_STRIDE = 16
"""Tokens between two looks for repetition."""


@dataclass(frozen=True)
class Sight:
    """Pixels of a look that nobody has seen yet."""

    visual: int
    """Which of the conversation's pictures and clips it belongs to."""
    patches_PC: Tensor
    hw: tuple[int, int]
    """(height, width) in patches."""


@final
class Answer:
    """A prepared request. Its pixels are let go once they have been seen."""

    def __init__(
        self,
        request: Request,
        prompt: Sequence,
        processor: Processor,
        grammars: Grammars,
        *,
        page_tokens: int,
        salt: Callable[[int], bytes],
    ) -> None:
        """
        Args:
            prompt: of the request (`open_prompt`).
            salt: prompt length -> what keys and values depend on besides the tokens.

        Raises:
            ValueError: an impossible schema.
        """
        self.sampling = request.sampling
        chat = processor.chat(request.chat_format)
        tokens = len(prompt.tokens_T)
        grammar = grammars.of(self.sampling, chat.stop_ids)
        looks = looks_of(prompt)
        self.content = Content(prompt, looks, page_tokens, salt(tokens))
        most = tokens + self.sampling.max_new_tokens - 1  # the last token that is generated is never read
        self.track = Track(0, tokens, most, self.content.page_key, looks)
        self.sights = _sights(prompt, self.track)
        self.held_bytes = sum(sight.patches_PC.nbytes for sight in self.sights.values())
        """Of pixels that nobody has seen yet."""
        self.vectors: dict[bytes, Tensor] = {}
        """Vision vectors by digest, held as long as the request may have to be computed again."""
        self.sampler = Sampler(self.sampling, prompt.tokens_T.tolist(), grammar)
        self.text = ReplyText(processor.tokenizer.stream(), self.sampling.stop)
        self.ms = _media_ms(prompt)
        self.added = 0.0
        self.started = 0.0
        """When the first token was there; 0 before that."""
        self.saw: set[int] = set()
        """Pictures and clips that cost vision time."""
        self.finish: FinishReason | None = None
        """Why it ended; None while it goes on."""
        self.error: Exception | None = None
        self._token_bytes = processor.tokenizer.token_bytes
        self._stop_ids = chat.stop_ids
        self._vision_tokens = len(prompt.vision_rows_M)
        self._resized_to = tuple(v.resized_hw for v in prompt.visuals)
        self._scene = _scene(parse_messages(request.messages), prompt, processor)
        self._logprobs: list[float] = []
        self._told: list[TokenLogprob] = []
        self._streamed = 0

    def push(self, choice: Choice) -> Delta | None:
        """Takes the next token; returns what it makes certain and decides whether the reply ends here."""
        self.started = self.started or time.perf_counter()
        self.content.generated.append(choice.token_id)
        self.track.known += 1
        self._logprobs.append(choice.logprob)
        if self.sampling.records_logprobs:
            top = tuple((i, self._token_bytes(i), logprob) for i, logprob in choice.top)
            self._told.append(TokenLogprob(choice.token_id, self._token_bytes(choice.token_id), choice.logprob, top))
        return self._piece(self._text_of(choice.token_id))

    def call_off(self) -> Delta | None:
        """Ends the reply as it is; returns what was held back until now, as at any other end."""
        self.finish = "cancelled"
        return self._piece(self.text.close())

    def _piece(self, text: str) -> Delta | None:
        """`text` with the log-probabilities since the last piece; None while there is nothing to tell."""
        if not text and not (self.finish and self._streamed < len(self._told)):
            return None
        told = tuple(self._told[self._streamed :])
        self._streamed = len(self._told)
        return Delta(text, told)

    def _text_of(self, token_id: int) -> str:
        if token_id in self._stop_ids:
            self.finish = "stop"
            return self.text.close()
        text = self.text.push(token_id)
        count = len(self._logprobs)
        if self.text.stopped or self.sampler.complete:
            self.finish = "stop"
        elif count == self.sampling.max_new_tokens:
            self.finish = "length"
        elif self.sampling.stop_on_repetition and count % _REPETITION_STRIDE == 0:
            self.finish = "repetition" if goes_in_circles(self.content.generated) else None
        if self.finish:
            text += self.text.close()
            self.finish = "stop" if self.text.stopped else self.finish
        return text

    def hold(self, digest: bytes, vectors_MD: Tensor) -> None:
        """Takes the vision vectors of a look; its pixels are not needed any more."""
        self.vectors[digest] = vectors_MD
        self.track.seen.add(digest)
        sight = self.sights.pop(digest, None)
        self.held_bytes = max(0, self.held_bytes - (0 if sight is None else sight.patches_PC.nbytes))

    def fail(self, error: Exception) -> None:
        """Ends the reply because something went wrong."""
        self.error = error
        self.finish = "cancelled"

    def reply(self) -> Reply:
        assert self.finish is not None, "the reply is not finished"
        text = self.text.text
        generate = 1000 * (time.perf_counter() - self.started) if self.started else 0.0
        return Reply(
            text=text,
            token_ids=tuple(self.content.generated),
            finish_reason=self.finish,
            boxes=find_boxes(text, self._scene),
            usage=Usage(
                prompt_tokens=self.track.prompt,
                vision_tokens=self._vision_tokens,
                completion_tokens=len(self._logprobs),
                resized_to=self._resized_to,
                cache_hits=self.cache_hits,
                cached_tokens=self.track.cached or 0,
                milliseconds=self.ms | {"generate": generate},
            ),
            logprobs=tuple(self._logprobs),
            token_logprobs=tuple(self._told),
            problem="" if self.error is None else f"{type(self.error).__name__}: {self.error}",
        )

    @property
    def cache_hits(self) -> int:
        """Pictures and clips that were answered about without being seen again."""
        return len(self._resized_to) - len(self.saw) if self.started else 0


def open_prompt(request: Request, processor: Processor, max_positions: int) -> Sequence:
    """The request's prompt, its pictures cut up.

    Raises:
        ValueError, FileNotFoundError: what the processor refuses; no room for the reply. That is told before pixels are
            decoded: sizes stand in the headers, and pixels may be many times the file.
    """
    room = partial(_check_room, max_new_tokens=request.sampling.max_new_tokens, max_positions=max_positions)
    messages = parse_messages(request.messages)
    return processor.sequence(messages, generation_prompt=True, chat_format=request.chat_format, admit=room)


def _scene(messages: tuple[Message, ...], prompt: Sequence, processor: Processor) -> Scene:
    coordinates = [Coordinates(v.original_hw, v.resized_hw) for v in prompt.visuals]
    return scene_of(messages, coordinates, processor.tokenizer.family.markup)


def _check_room(tokens: int, vision: int, max_new_tokens: int, max_positions: int) -> None:
    if tokens == 0:
        raise ValueError("the prompt is empty: there is nothing to go on from")
    if tokens + max_new_tokens > max_positions:
        seen = f" ({vision} of them pictures: a smaller max_pixels makes them fewer)" if vision else ""
        raise ValueError(
            f"the prompt has at least {tokens} tokens{seen} and max_new_tokens is {max_new_tokens}: together "
            f"{tokens + max_new_tokens}, but the model's context is {max_positions}; shorten one of the two"
        )


def _sights(prompt: Sequence, track: Track) -> dict[bytes, Sight]:
    """The pixels of each look, by digest."""
    sights: dict[bytes, Sight] = {}
    looks = iter(track.looks)
    for index, visual in enumerate(prompt.visuals):
        moments, height, width = visual.grid
        for patches_PC in visual.patches_PC.split(height * width):
            sights.setdefault(next(looks).digest, Sight(index, patches_PC, (height, width)))
        assert len(visual.patches_PC) == moments * height * width, "a grid of another size than its patches"
    return sights


def _media_ms(prompt: Sequence) -> dict[str, float]:
    """decode: opening files; resize: everything else that happens to pixels. The rest is counted as it happens."""
    decode = sum(v.ms.get("decode", 0.0) for v in prompt.visuals)
    resize = sum(sum(v.ms.values()) for v in prompt.visuals) - decode
    return {"queue": 0.0, "decode": decode, "resize": resize, "vision": 0.0, "prefill": 0.0}
