"""Requests and replies: the torch-free types that the engine, the server and the evaluations share.

Knows: what can be asked and what comes back. Does not know: models, tensors, pictures' contents.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol


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
    milliseconds: dict[str, float] = field(default_factory=dict)
    """Per phase: decode (of the file), resize (and cutting into patches), vision, prefill, generate. Requests that went
    through a phase together each report the whole of it."""


@dataclass(frozen=True)
class Reply:
    text: str
    """What a person reads: without special tokens, grounding marks included."""
    token_ids: tuple[int, ...]
    """Everything that was generated, the token that ended the reply included."""
    finish_reason: Literal["stop", "length"]
    boxes: tuple[Box, ...]
    usage: Usage
    logprobs: tuple[float, ...] = ()
    """Natural log-probability of each of `token_ids` under the model's own distribution (temperature 1, no filter)."""


class Generator(Protocol):
    """Anything that answers requests. The engine is one; tests use a canned one."""

    def generate(self, requests: Sequence[Request]) -> list[Reply]:
        """One reply per request, in order."""
        ...
