"""An engine in a thread of its own: requests come and go from any thread while it steps.

Knows: threads, tickets, when to take nothing more. Does not know: how a step is made (`qvl.engine.session`).

Pictures are opened in the thread that submits, so a slow file holds up nobody else. Only the engine's thread touches
the session; the others leave notes for it (`_inbox`, `_called_off`), which it reads between two steps. Whatever
happens, every ticket gets its reply.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from queue import SimpleQueue
from typing import final

from qvl.engine.answer import Answer
from qvl.engine.api import Delta, EngineStats, QueueFull, Reply, Request
from qvl.engine.limits import Limits
from qvl.engine.runner import Model
from qvl.engine.session import Session
from qvl.inputs.processor import Processor


@final
class LiveTicket:
    """One request under way (`qvl.engine.api.Ticket`)."""

    def __init__(self, answer: Answer, call_off: Callable[[LiveTicket], None]) -> None:
        self.answer = answer
        self._call_off = call_off
        self._items: SimpleQueue[Delta | Reply] = SimpleQueue()
        self._lock = threading.Lock()
        self._sink: Callable[[Delta | Reply], None] | None = None

    def __iter__(self) -> Iterator[Delta | Reply]:
        while True:
            item = self._items.get()
            if isinstance(item, Reply):
                self._items.put(item)  # whoever asks again gets the reply again
                yield item
                return
            yield item

    def cancel(self) -> None:
        self._call_off(self)

    def listen(self, sink: Callable[[Delta | Reply], None]) -> None:
        with self._lock:
            while not self._items.empty():
                sink(self._items.get())
            self._sink = sink

    def put(self, item: Delta | Reply) -> None:
        with self._lock:
            (self._sink or self._items.put)(item)


@final
class Live:
    """Continuous batching for many callers (`qvl.engine.api.LiveEngine`)."""

    def __init__(
        self, model: Model, processor: Processor, limits: Limits | None = None, model_name: str = "qvl"
    ) -> None:
        self.model_name = model_name
        self._limits = limits or Limits()
        self._session = Session(model, processor, self._limits)
        self._changed = threading.Condition()
        self._inbox: deque[LiveTicket] = deque()
        self._called_off: deque[LiveTicket] = deque()
        self._open: set[LiveTicket] = set()
        self._preparing = 0
        self._may_prepare = threading.BoundedSemaphore(self._limits.max_preparing)
        self._closed = ""
        """Why nothing new is taken; empty = it is."""
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="qvl engine", daemon=True)
        self._thread.start()

    def submit(self, request: Request) -> LiveTicket:
        """
        Raises:
            ValueError, FileNotFoundError: it can never be answered; the message names the number to change.
            QueueFull: too many wait, or the engine is closed.
        """
        return self.submit_all([request])[0]

    def submit_all(self, requests: Sequence[Request]) -> list[LiveTicket]:
        """Requests that ask the same messages: all or none, their pictures opened once. Raises as `submit`."""
        with self._changed:
            self._check_open(len(requests))
            self._preparing += len(requests)
        try:
            with self._may_prepare:
                answers = self._session.prepare_all(requests)
        except BaseException:
            with self._changed:
                self._preparing -= len(requests)
            raise
        tickets = [LiveTicket(answer, self._call_off) for answer in answers]
        with self._changed:
            self._preparing -= len(requests)
            if self._closed:
                raise QueueFull(self._closed)
            self._check_held(answers[0])
            self._open.update(tickets)
            self._inbox.extend(tickets)
            self._changed.notify_all()
        return tickets

    def stats(self) -> EngineStats:
        with self._changed:
            stats = self._session.stats()
            return replace(stats, waiting=stats.waiting + len(self._inbox))

    def close(self, *, drain_s: float) -> None:
        """Takes no new requests, finishes what there is for at most `drain_s` seconds, then ends the rest."""
        with self._changed:
            self._closed = self._closed or "the engine is closed"
            self._changed.wait_for(lambda: not self._open, timeout=drain_s)
            self._stopped = True
            self._changed.notify_all()
        self._thread.join()

    def _check_open(self, count: int) -> None:
        if self._closed:
            raise QueueFull(self._closed)
        most = self._limits.max_rows + self._limits.max_waiting
        if count > most:
            raise ValueError(
                f"{count} replies are asked for at once, but only {most} requests may be answered or wait "
                f"(max_rows={self._limits.max_rows}, max_waiting={self._limits.max_waiting}); ask for fewer (n)"
            )
        if len(self._open) + self._preparing + count > most:
            raise QueueFull(
                f"{most} requests are being answered or wait (max_rows={self._limits.max_rows}, "
                f"max_waiting={self._limits.max_waiting}); try again later"
            )

    def _check_held(self, answer: Answer) -> None:
        held, most = sum(ticket.answer.held_bytes for ticket in self._open), self._limits.max_held_mib << 20
        if held and held + answer.held_bytes > most:
            raise QueueFull(
                f"the pictures of this request take {answer.held_bytes >> 20} MiB, those of requests before it "
                f"{held >> 20} MiB (max_held_mib={self._limits.max_held_mib}); try again later"
            )

    def _call_off(self, ticket: LiveTicket) -> None:
        with self._changed:
            if ticket in self._open:
                self._called_off.append(ticket)
                self._changed.notify_all()

    # ------------------------------------------------------------------ the engine's thread

    def _run(self) -> None:
        reason: Exception = RuntimeError("the engine was closed before the reply was finished")
        try:
            while self._read_notes():
                if self._session.busy:
                    self._step()
        except Exception as error:
            reason = error
        with self._changed:
            self._closed = self._closed or f"the engine has stopped: {type(reason).__name__}: {reason}"
            left = list(self._open)
        for ticket in left:
            ticket.answer.fail(reason)
            self._finish(ticket, ticket.answer.reply())

    def _step(self) -> None:
        try:
            self._session.step()
        except Exception as error:  # of no request in particular: all that run fail, those that come after do not
            self._session.fail_all(error)

    def _read_notes(self) -> bool:
        """Waits for something to do, then takes in and calls off what was asked for; False = stop."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or self._session.busy or self._inbox or self._called_off)
            new, self._inbox = self._inbox, deque()
            called_off, self._called_off = self._called_off, deque()
        for ticket in new:
            try:
                self._session.add(ticket.answer, partial(self._hand_out, ticket))
            except ValueError as error:
                ticket.answer.fail(error)
                self._finish(ticket, ticket.answer.reply())
        for ticket in called_off:
            self._session.cancel(ticket.answer)
        return not self._stopped

    def _hand_out(self, ticket: LiveTicket, item: Delta | Reply) -> None:
        if isinstance(item, Reply):
            self._finish(ticket, item)
        else:
            ticket.put(item)

    def _finish(self, ticket: LiveTicket, reply: Reply) -> None:
        with self._changed:
            self._open.discard(ticket)
            self._changed.notify_all()
        ticket.put(reply)
