"""Requests and replies: the torch-free types that the engine, the server and the evaluations share.

Knows: what can be asked and what comes back. Does not know: models, tensors, pictures' contents.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any, Literal, Protocol

MAX_TOP_LOGPROBS = 20
MAX_TEMPERATURE = 100
PENALTIES = (0.01, 100)
"""Least and most of a repetition penalty: beyond, logits leave what float32 can hold."""

FinishReason = Literal["stop", "length", "repetition", "cancelled"]
"""stop: the model's own end or a stop string; length: `max_new_tokens`; repetition: it went round in circles;
cancelled: somebody called it off, or it failed (`Reply.problem` says why)."""


@dataclass(frozen=True)
class Beginning:
    """What a reply has to begin with: one of these texts, and after it JSON that fits the text's schema."""

    choices: tuple[tuple[str, str], ...]
    """(text, schema as JSON text). What a schema asks that cannot be followed is left to the model."""
    whole: bool = False
    """Nothing comes after it: the reply ends there."""

    def __post_init__(self) -> None:
        if not self.choices:
            raise ValueError("a reply cannot begin with one of no texts")
        for _, schema in self.choices:
            _check_schema(schema)


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
    """0 .. 20 alternatives recorded beside each token; more than 0 implies `logprobs`."""
    json_schema: str | None = None
    """The reply must be JSON that fits this schema (JSON text; "{}" = any JSON object)."""
    beginning: Beginning | None = None
    """What the reply must begin with; not together with `json_schema`."""
    stop_on_repetition: bool = True
    """End a reply that repeats itself for ever. Off where replies are scored."""

    @property
    def records_logprobs(self) -> bool:
        return self.logprobs or self.top_logprobs > 0

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "top_k", "top_logprobs", *(() if self.seed is None else ("seed",))):
            _check_number(name, getattr(self, name), whole=True)
        for name in ("temperature", "top_p", "repetition_penalty"):
            _check_number(name, getattr(self, name), whole=False)
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, got {self.max_new_tokens}")
        if not 0 <= self.temperature <= MAX_TEMPERATURE:
            raise ValueError(f"temperature must be >= 0 (0 = greedy) and <= {MAX_TEMPERATURE}, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], got {self.top_p}")
        if self.top_k < 0:
            raise ValueError(f"top_k must be >= 0 (0 = off), got {self.top_k}")
        least, most = PENALTIES
        if not least <= self.repetition_penalty <= most:
            raise ValueError(f"repetition_penalty must be {least} to {most} (1 = off), got {self.repetition_penalty}")
        if self.seed is not None and not -(2**63) <= self.seed < 2**64:
            raise ValueError(f"seed must be a whole number of 64 bits, got {self.seed}")
        if isinstance(self.stop, str) or not all(isinstance(s, str) and s for s in self.stop):
            raise ValueError(f"stop must be a tuple of non-empty strings, got {self.stop!r}")
        if not 0 <= self.top_logprobs <= MAX_TOP_LOGPROBS:
            raise ValueError(f"top_logprobs must be 0 to {MAX_TOP_LOGPROBS}, got {self.top_logprobs}")
        if self.json_schema is not None:
            _check_schema(self.json_schema)
            if self.beginning is not None:
                raise ValueError("json_schema says what the whole reply is: it cannot go together with beginning")


def _check_number(name: str, value: Any, *, whole: bool) -> None:
    """A wrong type would be found out in the middle of a step, or never: no count of tokens is ever 4.5."""
    kinds: Any = Integral if whole else Real
    if isinstance(value, bool) or not (isinstance(value, kinds) and -math.inf < value < math.inf):
        raise ValueError(f"{name} must be a {'whole' if whole else 'finite'} number, got {value!r}")


def _check_schema(text: str) -> None:
    if not isinstance(text, str):
        raise ValueError(f"json_schema must be JSON text, got {type(text).__name__}")
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"json_schema is not JSON: {error}") from None
    if not isinstance(schema, dict):
        raise ValueError(f"json_schema must be a JSON object (a schema), got {type(schema).__name__}")


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
    """Pictures and clips that cost no vision time: their vectors, or what follows from them, were still there."""
    cached_tokens: int = 0
    """Prompt tokens whose keys and values were still there from an earlier request."""
    milliseconds: dict[str, float] = field(default_factory=dict)
    """Per phase: queue, decode (of the file), resize (and cutting into patches), vision, prefill, generate. Requests
    that went through a phase together each report the whole of it."""


@dataclass(frozen=True)
class TokenLogprob:
    """A generated token, how likely the model found it, and what it would rather have said."""

    token_id: int
    data: bytes
    """The token's own bytes; a character may be spread over several tokens."""
    logprob: float
    """Natural log under the model's own distribution (temperature 1, no filter)."""
    top: tuple[tuple[int, bytes, float], ...] = ()
    """(id, bytes, logprob) of the likeliest tokens, most likely first."""


@dataclass(frozen=True)
class Delta:
    """A streamed piece."""

    text: str
    """Never part of a character, nor of a stop string; may be empty where only `logprobs` are left to tell."""
    logprobs: tuple[TokenLogprob, ...] = ()
    """Of the tokens since the last piece; every generated token is in one piece."""


@dataclass(frozen=True)
class Reply:
    text: str
    """What a person reads: without special tokens, grounding marks included."""
    token_ids: tuple[int, ...]
    """Everything that was generated, the token that ended the reply included."""
    finish_reason: FinishReason
    boxes: tuple[Box, ...]
    usage: Usage
    logprobs: tuple[float, ...] = ()
    """Natural log-probability of each of `token_ids` under the model's own distribution (temperature 1, no filter)."""
    token_logprobs: tuple[TokenLogprob, ...] = ()
    """The same with bytes and alternatives, if `Sampling` asked for it; one per id, the ending token included."""
    problem: str = ""
    """Why the reply failed on the way; empty = fine."""


class Generator(Protocol):
    """Anything that answers requests. The engine is one; tests use a canned one."""

    def generate(self, requests: Sequence[Request]) -> list[Reply]:
        """One reply per request, in order."""
        ...


class QueueFull(Exception):
    """Too many requests wait already: try again later."""


class Ticket(Protocol):
    """One request under way. Each piece is handed out once."""

    def __iter__(self) -> Iterator[Delta | Reply]:
        """Blocks until the next piece; the last item is the `Reply`, whatever happened."""
        ...

    def listen(self, sink: Callable[[Delta | Reply], None]) -> None:
        """Instead of iterating, once: `sink` gets every piece, those that wait already at once and the others from the
        engine's thread, which it must not hold up. The last one is the `Reply`."""
        ...

    def cancel(self) -> None:
        """Idempotent. Its memory is freed before the next step; the iterator ends with `finish_reason="cancelled"`."""
        ...


@dataclass(frozen=True)
class EngineStats:
    """Gauges of this moment, then counters since the start."""

    running: int
    waiting: int
    pages_used: int
    """Pages of the key/value cache that running requests hold."""
    pages_total: int
    requests: int
    """Replies given, cancelled ones included."""
    prompt_tokens: int
    completion_tokens: int
    vision_tokens: int
    prefix_hits: int
    """Requests that found the beginning of their prompt in the cache."""
    vision_hits: int
    """Pictures and clips that cost no vision time."""
    preemptions: int
    """Times a request gave up its pages to an older one, to be computed again."""
    cancelled: int


class LiveEngine(Protocol):
    """Answers requests from many threads at once, in a thread of its own."""

    model_name: str

    def submit(self, request: Request) -> Ticket:
        """
        Raises:
            ValueError, FileNotFoundError: it can never be answered; the message names the number to change.
            QueueFull: too many wait, or the engine is closed.
        """
        ...

    def submit_all(self, requests: Sequence[Request]) -> Sequence[Ticket]:
        """Requests that ask the same messages (the very same object): all or none, their pictures opened once.

        Raises: as `submit`.
        """
        ...

    def stats(self) -> EngineStats: ...

    def close(self, *, drain_s: float) -> None:
        """Takes no new requests, finishes what runs for at most `drain_s` seconds, then stops."""
        ...
