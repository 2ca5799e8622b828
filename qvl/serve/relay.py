"""One chat request under way: the engine's tickets as one asynchronous stream.

Knows: that a client can go away, and how long a request may take. Does not know: HTTP's shapes, models.

However it ends, it ends the same way: tickets are cancelled and bring a last reply.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Literal, final

from qvl.engine.api import Delta, LiveEngine, Reply, Request, Ticket

Why = Literal["", "time_limit", "gone"]
Item = tuple[int, Delta | Reply]
"""With the number of the ticket that brought it."""


@final
class Relay:
    """Items of several tickets until every one has brought its reply."""

    def __init__(self, tickets: Sequence[Ticket]) -> None:
        self._tickets = tickets
        self.why: Why = ""
        """Why the tickets were cancelled, if they were."""

    @classmethod
    def submit(cls, engine: LiveEngine, requests: Sequence[Request]) -> Relay:
        """All requests or none.

        Raises:
            ValueError, QueueFull: what the engine refuses.
        """
        return cls(engine.submit_all(requests))

    def cancel(self, why: Why) -> None:
        self.why = self.why or why
        self._stop()

    def _stop(self) -> None:
        for ticket in self._tickets:
            ticket.cancel()

    async def items(self, receive: Callable[[], Awaitable[Any]], limit_s: float) -> AsyncGenerator[Item]:
        """
        Args:
            receive: the ASGI channel, its body read: what still comes is the client's going away.
            limit_s: seconds until the tickets are cancelled.
        """
        loop = asyncio.get_running_loop()
        mailbox = _Mailbox(loop, self._stop)
        timer = loop.call_later(limit_s, self.cancel, "time_limit")
        watcher = asyncio.create_task(self._watch(receive))
        for number, ticket in enumerate(self._tickets):
            ticket.listen(partial(mailbox.put, number))
        try:
            open_tickets = len(self._tickets)
            while open_tickets:
                for number, item in await mailbox.take():
                    open_tickets -= isinstance(item, Reply)
                    yield number, item
        finally:
            timer.cancel()
            watcher.cancel()
            self._stop()

    async def _watch(self, receive: Callable[[], Awaitable[Any]]) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self.cancel("gone")


@final
class _Mailbox:
    """Carries items from the engine's thread into the event loop.

    The loop is woken once however many items have come until it looks; pieces of one ticket that have piled up become
    one. So a busy server sends longer pieces, not later ones.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, abandon: Callable[[], None]) -> None:
        """`abandon` is called if the loop is no more."""
        self._loop = loop
        self._abandon = abandon
        self._lock = threading.Lock()
        self._items: deque[Item] = deque()
        self._there = asyncio.Event()

    def put(self, number: int, item: Delta | Reply) -> None:
        """From any thread; never blocks."""
        with self._lock:
            self._items.append((number, item))
            first = len(self._items) == 1
        if first:
            try:
                self._loop.call_soon_threadsafe(self._there.set)
            except RuntimeError:  # the loop is closed: the server stopped without waiting
                self._abandon()

    async def take(self) -> list[Item]:
        """What has come, at least one item."""
        await self._there.wait()
        self._there.clear()
        with self._lock:
            items = list(self._items)
            self._items.clear()
        return _joined(items)


def _joined(items: Sequence[Item]) -> list[Item]:
    """The same with neighbouring pieces of each ticket as one piece."""
    joined: list[Item] = []
    last: dict[int, int] = {}
    for number, item in items:
        at = last.get(number)
        before = joined[at][1] if at is not None else None
        if at is not None and isinstance(item, Delta) and isinstance(before, Delta):
            joined[at] = number, Delta(before.text + item.text, before.logprobs + item.logprobs)
        else:
            last[number] = len(joined)
            joined.append((number, item))
    return joined
