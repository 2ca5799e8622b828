"""Answering requests in the caller's own thread: all at once, or piece by piece.

Knows: who asked for what. Does not know: how a step is made (`qvl.engine.session`).
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from typing import NoReturn, final

from qvl.engine.answer import Answer
from qvl.engine.api import Delta, EngineStats, Reply, Request
from qvl.engine.limits import Limits
from qvl.engine.runner import Model
from qvl.engine.session import Session
from qvl.inputs.processor import Processor

_AHEAD = 8
"""Requests prepared beyond those that run: enough to have the next ready, few enough to hold few pictures."""

_Begun = tuple[Answer, deque[Delta | Reply]]
"""A request under way, and what the steps brought it."""


@final
class Engine:
    """Answers requests with a model. Between calls it keeps what may be asked about again (prefixes, pictures)."""

    def __init__(self, model: Model, processor: Processor, limits: Limits | None = None) -> None:
        self.model = model
        self.processor = processor
        self.limits = limits or Limits()
        self._session: Session | None = None
        self._lock = threading.Lock()

    def generate(self, requests: Sequence[Request]) -> list[Reply]:
        """One reply per request, in order. What a request gets does not depend on the others.

        Raises:
            ValueError, FileNotFoundError: a request that cannot be answered, named by its number from 0.
        """
        among = len(requests) > 1
        replies: dict[int, Reply] = {}
        todo = deque(enumerate(requests))
        live: dict[int, _Begun] = {}
        try:
            while todo or live:
                while todo and len(live) < self.limits.max_rows + _AHEAD:
                    number, request = todo.popleft()
                    live[number] = self._begin(request, number if among else None)
                self._step()
                for number, (answer, outbox) in list(live.items()):
                    if outbox and isinstance(outbox[-1], Reply):
                        del live[number]
                        replies[number] = self._checked(answer, outbox[-1], number if among else None)
        finally:
            self._cancel([answer for answer, _ in live.values()])
        return [replies[number] for number in range(len(requests))]

    def stream(self, request: Request) -> Iterator[str | Reply]:
        """Pieces of text as they become certain, and at last the reply, whose text is their concatenation.

        Raises: as `generate`.
        """
        answer, outbox = self._begin(request, None)
        try:
            while True:
                self._step()
                while outbox:
                    item = outbox.popleft()
                    if isinstance(item, Reply):
                        yield self._checked(answer, item, None)
                        return
                    if item.text:
                        yield item.text
        finally:
            self._cancel([answer])

    def stats(self) -> EngineStats:
        with self._lock:
            return self._opened().stats()

    def _begin(self, request: Request, number: int | None) -> _Begun:
        outbox: deque[Delta | Reply] = deque()
        with self._lock:
            session = self._opened()
        try:
            answer = session.prepare(request)
            with self._lock:
                session.add(answer, outbox.append)
        except (ValueError, FileNotFoundError) as error:
            _raise(error, number)
        return answer, outbox

    def _opened(self) -> Session:
        if self._session is None:
            self._session = Session(self.model, self.processor, self.limits)
        return self._session

    def _step(self) -> None:
        """One step for everybody: callers in other threads find what it brought them in their own outboxes."""
        with self._lock:
            session = self._opened()
            if session.busy:
                session.step()

    def _cancel(self, answers: Sequence[Answer]) -> None:
        with self._lock:
            for answer in answers:
                self._opened().cancel(answer)

    def _checked(self, answer: Answer, reply: Reply, number: int | None) -> Reply:
        if answer.error is not None:
            _raise(answer.error, number)
        return reply


def _raise(error: Exception, number: int | None) -> NoReturn:
    """Raises what went wrong with a request, among several with its number."""
    if number is None or not isinstance(error, ValueError | FileNotFoundError):
        raise error
    kind = FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError
    raise kind(f"request {number}: {error}") from error
