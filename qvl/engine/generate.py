"""Answering requests: prompts are prefilled together, rows decoded together, and each leaves when it is finished.

Knows: which requests wait, which rows live, how much fits at once. Does not know: how tokens are chosen, how a model
computes, where requests come from.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import final

import torch

from qvl.engine.answer import Answer
from qvl.engine.api import Reply, Request
from qvl.engine.forward import Forward, Model
from qvl.engine.sampler import choose_tokens
from qvl.inputs.processor import Processor


@dataclass(frozen=True)
class Limits:
    max_rows: int = 32
    """Requests answered at once; more wait, and take the place of finished ones."""
    max_batch_tokens: int = 16384
    """Prompt tokens prefilled in one pass. A longer prompt is prefilled alone."""

    def __post_init__(self) -> None:
        if self.max_rows < 1 or self.max_batch_tokens < 1:
            raise ValueError(
                f"limits must be at least 1, got max_rows={self.max_rows}, max_batch_tokens={self.max_batch_tokens}"
            )


@dataclass(frozen=True)
class Event:
    """What one step brought for one request."""

    key: int
    piece: str = ""
    """New text; never part of a character or of a stop string."""
    reply: Reply | None = None
    """The finished reply: the last event of its request."""
    error: ValueError | FileNotFoundError | None = None
    """The request cannot be answered: the last event of its request."""


@final
class Engine:
    """Answers requests with a model. Holds nothing between calls."""

    def __init__(self, model: Model, processor: Processor, limits: Limits | None = None) -> None:
        self.model = model
        self.processor = processor
        self.limits = limits or Limits()

    def session(self) -> Session:
        """An empty session: requests can be added and cancelled while it steps."""
        return Session(self.model, self.processor, self.limits)

    def generate(self, requests: Sequence[Request]) -> list[Reply]:
        """One reply per request, in order. What a request gets does not depend on the others.

        Raises:
            ValueError, FileNotFoundError: a request that cannot be answered, named by its number from 0.
        """
        session = self.session()
        keys = [session.add(request) for request in requests]
        replies: dict[int, Reply] = {}
        while session.busy:
            for event in session.step():
                if event.error is not None:
                    where = f"request {keys.index(event.key)}: " if len(requests) > 1 else ""
                    raise type(event.error)(f"{where}{event.error}") from event.error
                if event.reply is not None:
                    replies[event.key] = event.reply
        return [replies[key] for key in keys]

    def stream(self, request: Request) -> Iterator[str | Reply]:
        """Pieces of text as they become certain, and at last the reply, whose text is their concatenation.

        Raises: as `generate`.
        """
        session = self.session()
        session.add(request)
        while session.busy:
            for event in session.step():
                if event.error is not None:
                    raise event.error
                if event.piece:
                    yield event.piece
                if event.reply is not None:
                    yield event.reply


@final
class Session:
    """Rows that are being answered, in the order of the cache's rows, and requests that wait.

    Not for several threads at once.
    """

    def __init__(self, model: Model, processor: Processor, limits: Limits) -> None:
        self._forward = Forward(model)
        self._processor = processor
        self._max_positions: int = model.config.max_positions
        self._limits = limits
        self._cache = self._forward.new_cache()
        self._rows: list[Answer] = []
        self._waiting: deque[tuple[int, Request]] = deque()
        self._prepared: Answer | None = None
        self._added = 0

    @property
    def busy(self) -> bool:
        """There is something left to do."""
        return bool(self._rows or self._waiting or self._prepared)

    def add(self, request: Request) -> int:
        """Queues a request; returns the key that its events carry."""
        self._waiting.append((self._added, request))
        self._added += 1
        return self._added - 1

    @torch.inference_mode()
    def cancel(self, key: int) -> None:
        """Forgets a request, wherever it is; nothing happens if it is finished."""
        self._waiting = deque(item for item in self._waiting if item[0] != key)
        if self._prepared is not None and self._prepared.key == key:
            self._prepared = None
        for row in [i for i, answer in enumerate(self._rows) if answer.key == key]:
            self._drop(row)

    @torch.inference_mode()
    def step(self) -> list[Event]:
        """Prefills what waits, if there is room; otherwise gives every row one more token."""
        events, admitted = self._admit()
        if admitted:
            return events + self._prefill(admitted)
        return events + (self._decode() if self._rows else [])

    def _admit(self) -> tuple[list[Event], list[Answer]]:
        """Prepares waiting requests until rows or tokens run out. Pictures are opened here and not earlier, so that
        a long queue holds none of them in memory."""
        events: list[Event] = []
        admitted: list[Answer] = []
        tokens = 0
        while len(self._rows) + len(admitted) < self._limits.max_rows and (self._prepared or self._waiting):
            if self._prepared is None:
                key, request = self._waiting.popleft()
                try:
                    self._prepared = Answer(key, request, self._processor, self._max_positions)
                except (ValueError, FileNotFoundError) as error:
                    events.append(Event(key, error=error))
                    continue
            if admitted and tokens + self._prepared.prompt_tokens > self._limits.max_batch_tokens:
                break
            tokens += self._prepared.prompt_tokens
            admitted.append(self._prepared)
            self._prepared = None
        return events, admitted

    def _prefill(self, admitted: list[Answer]) -> list[Event]:
        batch = self._processor.pack([a.sequence for a in admitted if a.sequence is not None])
        rows = [self._cache.add_row() for _ in admitted]
        logits_SV, ms = self._forward.prefill(batch, self._cache, rows)
        self._rows += admitted
        for answer in admitted:
            answer.sequence = None  # its pixels are not needed any more
            answer.ms |= ms
            answer.started = time.perf_counter()
        return self._choose(logits_SV, rows)

    def _decode(self) -> list[Event]:
        tokens, positions = zip(*(answer.last_token for answer in self._rows), strict=True)
        return self._choose(self._forward.decode(tokens, positions, self._cache), range(len(self._rows)))

    def _choose(self, logits_BV: torch.Tensor, rows: Sequence[int]) -> list[Event]:
        picked, logprobs = choose_tokens(logits_BV, [self._rows[row].sampler for row in rows])
        events = []
        for row, token, logprob in zip(rows, picked, logprobs, strict=True):
            answer = self._rows[row]
            piece = answer.push(token, logprob)
            events.append(Event(answer.key, piece, answer.reply() if answer.finish else None))
        for row in reversed(rows):  # from the end, so that a row that moves up has been dealt with
            if self._rows[row].finish:
                self._drop(row)
        return events

    def _drop(self, row: int) -> None:
        self._cache.drop_row(row)
        self._rows[row] = self._rows[-1]
        self._rows.pop()
