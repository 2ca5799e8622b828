"""Requests and replies: the torch-free types that the engine, the server and the evaluations share.

Knows: what can be asked and what comes back. Does not know: models, tensors, pictures' contents.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

MAX_TOP_LOGPROBS = 20


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. `temperature=0` is greedy."""

    max_new_tokens: int = 128
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    """Texts that end the reply; they are left out of it."""
    logprobs: bool = False
    """Record `Reply.token_logprobs`."""
    top_logprobs: int = 0
    """0 to 20 alternatives recorded beside each token."""
    json_schema: str | None = None
    """The reply must be JSON that fits this schema (JSON text; "{}" = any JSON object)."""
    stop_on_repetition: bool = True

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, got {self.max_new_tokens}")
        if self.temperature < 0:
            raise ValueError(f"temperature must be >= 0 (0 = greedy), got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], got {self.top_p}")
        if self.top_k < 0:
            raise ValueError(f"top_k must be >= 0 (0 = off), got {self.top_k}")
        if self.repetition_penalty <= 0:
            raise ValueError(f"repetition_penalty must be > 0 (1 = off), got {self.repetition_penalty}")
        if isinstance(self.stop, str) or not all(isinstance(s, str) and s for s in self.stop):
            raise ValueError(f"stop must be a tuple of non-empty strings, got {self.stop!r}")
        if not 0 <= self.top_logprobs <= MAX_TOP_LOGPROBS:
            raise ValueError(f"top_logprobs must be from 0 to {MAX_TOP_LOGPROBS}, got {self.top_logprobs}")


@dataclass(frozen=True)
class Request:
    messages: Sequence[Any]
    """OpenAI-style messages (or parsed ones)."""
    sampling: Sampling = Sampling()
    chat_format: Literal["chatml", "raw"] | None = None
    """None = the model's own format."""


@dataclass(frozen=True)
class Box:
    """A box of a reply, in pixels of the picture as it was given."""

    label: str
    xyxy: tuple[int, int, int, int]
    image: int = 0
    """Index among the conversation's pictures and videos in reading order, from 0 (as in `Usage.resized_to`)."""


@dataclass(frozen=True)
class Usage:
    prompt_tokens: int
    vision_tokens: int
    completion_tokens: int
    resized_to: tuple[tuple[int, int], ...] = ()
    """(height, width) in pixels that each picture or video was resized to."""
    cache_hits: int = 0
    """Pictures whose vision vectors were there already."""
    cached_tokens: int = 0
    """Prompt tokens taken from the prefix cache."""
    milliseconds: dict[str, float] = field(default_factory=dict)
    """Per phase: queue, decode (of the file), resize (and cutting into patches), vision, prefill, generate. Requests
    that went through a phase together each report the whole of it."""


@dataclass(frozen=True)
class TokenLogprob:
    token_id: int
    data: bytes
    """The token's own bytes."""
    logprob: float
    """Natural log under the model's own distribution."""
    top: tuple[tuple[int, bytes, float], ...] = ()
    """The most likely tokens (id, bytes, logprob), most likely first."""


@dataclass(frozen=True)
class Delta:
    """A streamed piece; its text never splits a character."""

    text: str
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True)
class Reply:
    text: str
    """What a person reads: without special tokens, grounding marks included."""
    token_ids: tuple[int, ...]
    """Everything that was generated, the token that ended the reply included."""
    finish_reason: Literal["stop", "length", "repetition", "cancelled"]
    boxes: tuple[Box, ...]
    usage: Usage
    logprobs: tuple[float, ...] = ()
    """Natural log-probability of each of `token_ids` under the model's own distribution (temperature 1, no filter)."""
    token_logprobs: tuple[TokenLogprob, ...] = ()
    """The same with bytes and alternatives, if `Sampling.logprobs` or `top_logprobs` asked for it."""
    problem: str = ""
    """Why a reply failed after it was admitted; empty = it did not."""


class Generator(Protocol):
    """Anything that answers requests. The engine is one; tests use a canned one."""

    def generate(self, requests: Sequence[Request]) -> list[Reply]:
        """One reply per request, in order."""
        ...


class QueueFull(Exception):
    """Too many requests wait; ask again later."""


class Ticket(Protocol):
    """One request under way."""

    def __iter__(self) -> Iterator[Delta | Reply]:
        """Blocks between pieces; the last item is the reply."""
        ...

    def cancel(self) -> None:
        """Ends it at once (`finish_reason` "cancelled"); nothing happens if it is finished."""
        ...


@dataclass(frozen=True)
class EngineStats:
    """What runs now, and sums since the start."""

    running: int
    waiting: int
    pages_used: int
    pages_total: int
    requests: int
    prompt_tokens: int
    completion_tokens: int
    vision_tokens: int
    prefix_hits: int
    vision_hits: int
    preemptions: int
    cancelled: int


class LiveEngine(Protocol):
    """Answers requests as they come, many at a time, in a thread of its own."""

    model_name: str

    def submit(self, request: Request) -> Ticket:
        """
        Raises:
            ValueError: it can never be answered; the message names the number to change.
            QueueFull: too many wait.
        """
        ...

    def stats(self) -> EngineStats: ...

    def close(self, *, drain_s: float) -> None:
        """Takes nothing new, finishes what runs within `drain_s` seconds, then stops."""
        ...
