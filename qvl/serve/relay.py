"""One chat request under way: the engine's blocking tickets as one asynchronous stream.

Knows: that a client can go away, and how long a request may take. Does not know: HTTP's shapes, models.

However it ends, it ends the same way: tickets are cancelled and their iterators bring a last reply.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import Any, Literal, final

from qvl.engine.api import Delta, LiveEngine, Reply, Request, Ticket

Why = Literal["", "time_limit", "gone"]


@final
class Relay:
    """Items of several tickets, each with the ticket's number, until every one has brought its reply."""

    def __init__(self, tickets: Sequence[Ticket]) -> None:
        self._tickets = tickets
        self._items: asyncio.Queue[tuple[int, Delta | Reply | BaseException]] = asyncio.Queue()
        self.why: Why = ""
        """Why the tickets were cancelled, if they were."""

    @classmethod
    def submit(cls, engine: LiveEngine, requests: Sequence[Request]) -> Relay:
        """All requests or none.

        Raises:
            ValueError, QueueFull: what the engine refuses.
        """
        tickets: list[Ticket] = []
        try:
            for request in requests:
                tickets.append(engine.submit(request))  # noqa: PERF401  (those before a refusal are cancelled)
        except BaseException:
            for ticket in tickets:
                ticket.cancel()
            raise
        return cls(tickets)

    def cancel(self, why: Why) -> None:
        self.why = self.why or why
        self._stop()

    def _stop(self) -> None:
        for ticket in self._tickets:
            ticket.cancel()

    async def items(
        self, receive: Callable[[], Awaitable[Any]], limit_s: float
    ) -> AsyncGenerator[tuple[int, Delta | Reply]]:
        """
        Args:
            receive: the ASGI channel, its body read: what still comes is the client's going away.
            limit_s: seconds until the tickets are cancelled.
        """
        loop = asyncio.get_running_loop()
        timer = loop.call_later(limit_s, self.cancel, "time_limit")
        watcher = asyncio.create_task(self._watch(receive))
        for number, ticket in enumerate(self._tickets):
            threading.Thread(target=self._pump, args=(loop, number, ticket), daemon=True, name="qvl-relay").start()
        try:
            open_tickets = len(self._tickets)
            while open_tickets:
                number, item = await self._items.get()
                if isinstance(item, BaseException):
                    raise item
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

    def _pump(self, loop: asyncio.AbstractEventLoop, number: int, ticket: Ticket) -> None:
        def put(item: Delta | Reply | BaseException) -> None:
            try:
                loop.call_soon_threadsafe(self._items.put_nowait, (number, item))
            except RuntimeError:  # the loop is closed: the server stopped without waiting
                ticket.cancel()

        try:
            for item in ticket:
                put(item)
        except BaseException as error:
            put(error)
