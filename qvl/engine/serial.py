"""`api.LiveEngine` over `Engine.stream`: one request at a time, in the thread of the one who reads its ticket.

Knows: turns, waiting, cancelling between tokens. Does not know: batching, HTTP.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import final

from qvl.engine.answer import Answer
from qvl.engine.api import Delta, EngineStats, QueueFull, Reply, Request, Ticket, Usage
from qvl.engine.generate import Engine


@final
class SerialEngine:
    """Thread-safe. The simplest thing that serves."""

    def __init__(self, engine: Engine, model_name: str, *, max_waiting: int = 64) -> None:
        self.model_name = model_name
        self._engine = engine
        self._max_waiting = max_waiting
        self._turn = threading.Lock()
        self._lock = threading.Lock()
        self._waiting = 0
        self._running = 0
        self._closed = False
        self._sums = {"requests": 0, "prompt_tokens": 0, "completion_tokens": 0, "vision_tokens": 0, "cancelled": 0}

    def submit(self, request: Request) -> Ticket:
        """
        Raises:
            ValueError, FileNotFoundError: it can never be answered, or asks for what this engine cannot do.
            QueueFull: too many wait.
        """
        sampling = request.sampling
        if sampling.json_schema is not None:
            raise ValueError("replies in a given JSON form are not supported by this engine; leave response_format out")
        if sampling.logprobs or sampling.top_logprobs:
            raise ValueError("logprobs are not supported by this engine; leave them out")
        # Prepared once more when its turn comes: what is wrong with it is said now, and a queue holds no pictures.
        Answer(0, request, self._engine.processor, self._engine.model.config.max_positions)
        with self._lock:
            if self._closed or self._waiting >= self._max_waiting:
                raise QueueFull("the engine is closed" if self._closed else f"{self._waiting} requests wait already")
            self._waiting += 1
            self._sums["requests"] += 1
        return _Turn(self, request)

    def stats(self) -> EngineStats:
        with self._lock:
            return EngineStats(
                running=self._running, waiting=self._waiting, pages_used=0, pages_total=0,
                prefix_hits=0, vision_hits=0, preemptions=0, **self._sums,
            )  # fmt: skip

    def close(self, *, drain_s: float) -> None:
        """Takes nothing new; what runs has `drain_s` seconds to finish."""
        self._closed = True
        if self._turn.acquire(timeout=max(0.0, drain_s)):
            self._turn.release()

    def answer(self, request: Request, cancelled: threading.Event) -> Iterator[Delta | Reply]:
        """The pieces of one reply; waits for its turn first."""
        while not (mine := self._turn.acquire(timeout=0.05)) and not cancelled.is_set():
            pass
        with self._lock:
            self._waiting -= 1
            self._running += mine
        said = ""
        try:
            reply = _stopped(said)
            for piece in self._engine.stream(request) if mine and not cancelled.is_set() else ():
                if isinstance(piece, Reply):
                    reply = piece
                elif cancelled.is_set():
                    reply = _stopped(said)
                    break
                else:
                    said += piece
                    yield Delta(piece)
        except (ValueError, FileNotFoundError) as error:
            reply = replace(_stopped(said), problem=str(error))
        finally:
            with self._lock:
                self._running -= mine
            if mine:
                self._turn.release()
        self._count(reply)
        yield reply

    def _count(self, reply: Reply) -> None:
        with self._lock:
            self._sums["cancelled"] += reply.finish_reason == "cancelled"
            for name in ("prompt_tokens", "completion_tokens", "vision_tokens"):
                self._sums[name] += getattr(reply.usage, name)


@final
class _Turn:
    def __init__(self, engine: SerialEngine, request: Request) -> None:
        self._engine = engine
        self._request = request
        self._cancelled = threading.Event()

    def __iter__(self) -> Iterator[Delta | Reply]:
        return self._engine.answer(self._request, self._cancelled)

    def cancel(self) -> None:
        self._cancelled.set()


def _stopped(said: str) -> Reply:
    return Reply(said, (), "cancelled", (), Usage(0, 0, 0))
